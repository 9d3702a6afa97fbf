"""Resuming compares the data with those of the checkpoint, whatever lies under their path now."""

import shutil
from dataclasses import replace

import pytest
import torch
from small_caches import small_recipe, write_cache

from vfmtok import distributed
from vfmtok.data.dataset_folder import open_for_training
from vfmtok.data.records import write_records
from vfmtok.errors import DataError
from vfmtok.training.train_generator import train_generator
from vfmtok.weights import checkpoint

ALONE = distributed.World(0, 1, torch.device("cpu"))


@pytest.fixture
def images(sample_set, tmp_path):
    """``images(first)``: the same folder with 12 records of the sample set, from ``first`` on."""

    def write(first: int):
        records, _ = open_for_training(sample_set)
        shutil.rmtree(tmp_path / "images", ignore_errors=True)
        write_records(tmp_path / "images", (records[i] for i in range(first, first + 12)), classes=records.classes)
        return f"data.path={tmp_path / 'images'}"

    return write


def test_other_images_under_the_same_path(images, tiny_recipe, train, capsys, tmp_path):
    train(tiny_recipe("optimizer.steps=4", images(0)))
    with pytest.raises(DataError, match=r"12 samples, fingerprint .*--new-data"):
        train(tiny_recipe("optimizer.steps=6", images(1)))
    moved = images(0)
    shutil.move(tmp_path / "images", tmp_path / "moved")
    train(tiny_recipe("optimizer.steps=5", moved.replace("/images", "/moved")))  # the same images elsewhere
    train(tiny_recipe("optimizer.steps=6", images(1), "run.new_data=true"))
    assert "other data than the checkpoint's: 12 samples" in capsys.readouterr().out
    train(tiny_recipe("optimizer.steps=7", images(1)))  # by now they are the run's own


def test_a_checkpoint_that_does_not_say_its_data(images, tiny_recipe, train):
    """Those of version 0.1."""
    folder = train(tiny_recipe("optimizer.steps=4", images(0)))
    saved = checkpoint.CheckpointFolder(folder / "checkpoints")
    newest = saved.open_newest().read()
    del newest.numbers["data"]
    saved.save(replace(newest, step=5))
    train(tiny_recipe("optimizer.steps=6", images(1)))
    assert saved.open_newest().step == 6


def test_another_cache_under_the_same_path(caches):
    train_generator(small_recipe(caches, optimizer={"steps": 4}), ALONE)
    shutil.rmtree(caches / "train")
    write_cache(caches / "train", seed=7)
    with pytest.raises(DataError, match="40 samples, fingerprint 7"):
        train_generator(small_recipe(caches), ALONE)
    train_generator(small_recipe(caches, run={"new_data": True}), ALONE)
