"""Measuring on held-out images, in processes that may have none of them."""

import contextlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from photographs import jpeg, photographs

from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.data.transforms import EvaluationCrop
from vfmtok.distributed import World
from vfmtok.errors import DataError
from vfmtok.losses.perceptual import EncoderPerceptual
from vfmtok.tokenizers import load_config
from vfmtok.tokenizers.vfmtok.model import VFMTok
from vfmtok.training.validation import HeldOut, read_samples


def measured(root: Path, folder: Path, size: int, rank: int) -> torch.Tensor:
    torch.manual_seed(0)
    tokenizer = VFMTok(load_config(root / "configs/tiny.yaml")).eval()
    held_out = HeldOut(RecordDataset(folder / "val_lmdb"), 32, 1, 4, World(rank, size, torch.device("cpu")), 0)
    values = held_out.measure(tokenizer, EncoderPerceptual(tokenizer.encoder), contextlib.nullcontext)
    shown = len(held_out.reconstruct(tokenizer, contextlib.nullcontext))
    return torch.tensor([values["psnr"], values["perceptual"], shown])


@pytest.mark.slow
def test_more_processes_than_images(root, sample_set, tmp_path):
    """The process without an image changes nothing in the means."""
    (tmp_path / "one").mkdir()
    # Alone, but started as the others are: another number of threads would round otherwise.
    (one,) = ranks.run(partial(measured, root, sample_set, 1), tmp_path / "one", size=1)
    first, second = ranks.run(partial(measured, root, sample_set, 2), tmp_path)
    assert torch.isfinite(one).all() and torch.equal(first, one)
    assert torch.equal(second[:2], one[:2]) and second[2] == 0


def test_a_bad_image_is_replaced_with_its_label(tmp_path):
    images = [jpeg(photograph.resize((40, 36))) for photograph in photographs()[:4]] * 30
    records = [Record(b"no image" if i == 5 else images[i], i % 3, f"{i}.jpg") for i in range(120)]
    write_records(tmp_path / "val", records)
    crops, labels = read_samples(RecordDataset(tmp_path / "val"), EvaluationCrop(32), np.arange(120), 0)
    assert labels.tolist() == [(6 if i == 5 else i) % 3 for i in range(120)]
    assert torch.equal(crops[5], crops[6]) and not torch.equal(crops[4], crops[5])


def test_bad_held_out_images_are_found_before_the_first_step(tiny_recipe, train, tmp_path):
    write_records(tmp_path / "val", [Record(b"no image", 0, f"{i}.png") for i in range(4)], classes=["a"])
    with pytest.raises(DataError, match="bad records"):
        train(tiny_recipe(f"data.val_path={tmp_path}/val"))
    assert not (tmp_path / "run/log.jsonl").exists()
