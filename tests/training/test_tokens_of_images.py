"""From images to tokens and a generator: training on images, and the pictures it draws."""

import io
import itertools
import json
import re
import runpy
import signal
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import train_gpt as training_benchmark
from image_place import ALONE, GPT, cell, sample
from photographs import jpeg, photographs
from PIL import Image
from small_caches import CLASSES, recipe_file, small_recipe, write_cache
from training_runs import ROOT, logged

import vfmtok
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.errors import DataError
from vfmtok.generators.autoregressive import generate
from vfmtok.generators.counter_random import Draws
from vfmtok.training.code_source import CodeData, encode, open_codes, training_codes
from vfmtok.training.generator_run import GeneratorRun
from vfmtok.training.run_log import RunLog
from vfmtok.training.train_generator import train_generator
from vfmtok.weights.hashing import tokenizer_hash


def test_images_train_as_their_cache_does(place):
    """The same crops encoded at every step give the losses of the cache, and the same held-out loss."""
    settings = {"gpt": GPT, "optimizer": {"steps": 6}, "pictures": {"every": 0}}
    train_generator(small_recipe(place.folder, "cached", **settings), ALONE)
    images = {"code_path": None, "path": str(place.folder / "images"), "flip": False}
    train_generator(small_recipe(place.folder, "images_run", data=place.data(**images), **settings), ALONE)
    for name in ("loss/token", "validation/loss", "validation/accuracy"):
        found = logged(place.folder / "images_run", name)
        assert found == pytest.approx(logged(place.folder / "cached", name), abs=1e-5) and found
    both = place.data(val_path=str(place.folder / "images"))  # a cache to train on, images held out
    found = GeneratorRun(small_recipe(place.folder, "both", data=both, **settings), ALONE)
    cached = GeneratorRun(small_recipe(place.folder, "both", **settings), ALONE)
    assert torch.equal(found.held_out.code, cached.held_out.code) and found.baselines == cached.baselines
    assert torch.equal(found.held_out.labels, cached.held_out.labels)


def test_labels_beyond_the_classes_are_one_line(place, tmp_path):
    """Of images that do not name their classes: held-out ones at the start, others when they are met."""
    records = [Record(jpeg(photographs()[i].resize((40, 36))), 2 * i, f"{i}.jpg") for i in range(4)]
    for name, count in (("train", 2), ("val", 4)):
        write_records(tmp_path / f"{name}_lmdb", records[:count])
    images = {"code_path": None, "path": str(tmp_path / "train_lmdb"), "val_path": str(tmp_path / "val_lmdb")}
    with pytest.raises(DataError, match=r"val_lmdb has labels 0 to 6, the generator 3 classes \(--num-classes\)"):
        GeneratorRun(small_recipe(tmp_path, gpt=GPT, data=place.data(**images)), ALONE)
    images["val_path"] = str(tmp_path / "train_lmdb")
    run = GeneratorRun(small_recipe(tmp_path, gpt=GPT, data=place.data(**images)), ALONE)
    run.data.records = RecordDataset(tmp_path / "val_lmdb")
    with pytest.raises(DataError, match="labels 0 to 6"):
        next(run.codes())


def test_the_picture_is_what_generate_and_the_tokenizer_give(place, run):
    """The average's, of classes 0 and 2: sample 4 of the seed is the second image of the second row."""
    picture = np.asarray(Image.open(run / "pictures/ema_samples_0000003.png"))
    gpt = vfmtok.from_pretrained(run, "generator")
    ids = generate(gpt, torch.tensor([0, 0, 0, 2, 2, 2]), cfg_scale=2.0, seed=0)
    pixels = place.tokenizer.decode_to_uint8(ids, 32)[4].numpy().repeat(4, 0).repeat(4, 1)
    assert np.array_equal(cell(picture, 1, 1), pixels)
    assert (run / "pictures/samples_0000003.png").exists()


def test_a_stop_at_a_step_of_pictures_loses_none(place, run, monkeypatch):
    """SIGTERM comes in step 3, no step of validation: the run that continues draws what the other one drew."""
    honest = RunLog.advance

    def advance(log):
        log.steps = getattr(log, "steps", 0) + 1
        if log.steps == 3:
            signal.raise_signal(signal.SIGTERM)
        honest(log)

    monkeypatch.setattr(RunLog, "advance", advance)
    pictures, folder = {"every": 3, "classes": 2, "per_class": 3}, place.folder / "stopped"
    for steps in (4, 5):
        recipe = small_recipe(
            place.folder, "stopped", gpt=GPT, data=place.data(), pictures=pictures, optimizer={"steps": steps}
        )
        train_generator(recipe, ALONE)
        assert len(list((folder / "pictures").glob("*_0000003.png"))) == (0 if steps == 4 else 2)
    for name in ("samples", "ema_samples"):
        file = f"pictures/{name}_0000003.png"
        assert np.array_equal(Image.open(folder / file), Image.open(run / file))


def test_pictures_that_cannot_be_drawn_end_no_run(place, capsys):
    """At this temperature the logits overflow. The checkpoint is there before the pictures are tried."""
    pictures, folder = {"every": 2, "temperature": 1e-45}, place.folder / "cold"
    train_generator(
        small_recipe(place.folder, "cold", gpt=GPT, data=place.data(), pictures=pictures, optimizer={"steps": 4}), ALONE
    )
    alarm = "no picture of samples: the model's logits are not finite"
    told = capsys.readouterr().out
    assert f"ALARM at step 2: {alarm}" in told and "finished 4 steps" in told and not (folder / "pictures").exists()
    assert told.index("saved") < told.index(f"ALARM at step 4: {alarm}") < told.index("finished")


def test_the_tokenizer_of_other_tokens_is_refused(place, tmp_path, capsys):
    """In training, and when sampling."""
    write_cache(tmp_path / "train", codes=64)
    with pytest.raises(DataError, match="made by another tokenizer"):
        GeneratorRun(small_recipe(tmp_path, gpt=GPT, data=place.data()), ALONE)
    train_generator(small_recipe(tmp_path, gpt=GPT, optimizer={"steps": 1}), ALONE)
    assert sample(place, tmp_path / "run", tmp_path / "a.png", "--classes", "1") == 2
    assert "trained on the tokens of another tokenizer" in capsys.readouterr().err
    assert tokenizer_hash(place.tokenizer) != "ab" * 32


def _benchmark(name: str, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "benchmarks" / name), run_name="__main__")


def test_the_benchmark_of_training(place, monkeypatch, capsys):
    """Only images are encoded, and no part takes longer than the step."""
    recipe = recipe_file(place.folder, "benchmark", gpt=GPT, data={"code_path": None}, run={"accumulation": 2})
    flags = ["--recipe", recipe, "--code-path", place.folder / "train", "--anno-file", place.folder / "images"]
    _benchmark("train_gpt.py", monkeypatch, *flags, *place.named, "--steps", 7)
    cache, images = capsys.readouterr().out.split("images: ")
    for told, parts in ((cache, 4), (images, 5)):
        shares = [float(share) for share in re.findall(r"([\d.]+)% \|$", told, re.MULTILINE)]
        assert len(shares) == parts and max(shares) <= 100
        assert "| step from" in told
    assert "encoding" in images and "encoding" not in cache and "times one from the cache" in images


@pytest.mark.parametrize("source", ["train", "images"])
def test_the_parts_make_up_the_step(place, source, monkeypatch):
    """Every look at the clock is a second after the last one: reading or encoding is one, a pass two, updating one."""
    images = {"code_path": None, "path": str(place.folder / "images")} if source == "images" else {}
    settings = {"gpt": GPT, "data": place.data(**images), "run": {"accumulation": 2}}
    run, clock = GeneratorRun(small_recipe(place.folder, "clock", **settings), ALONE), itertools.count()
    monkeypatch.setattr(training_benchmark, "_now", lambda device: next(clock))
    times = training_benchmark.time_steps(run, 3)
    reading = [sum(spent) for spent in zip(times["reading"], times["encoding"], strict=True)]
    assert reading == pytest.approx([1, 1, 1]) and any(times["encoding"]) == (source == "images")
    assert times["forward"] == times["backward"] == [2, 2, 2] and times["update"] == [1, 1, 1]


def test_what_an_encoder_draws_belongs_to_the_sample(place):
    """Of a tokenizer whose code is a matter of chance: not of the batch, and another in the next epoch."""

    class Noisy:
        encode_draws, code, device = True, vfmtok.Latents((3, 1, 1)), torch.device("cpu")

        def encode(self, images, draws=None):
            means = images.mean((2, 3))[:, :, None, None]  # (B,3,1,1)
            noise = 0 if draws is None else draws.normal("posterior", 3)[:, :, None, None]
            return SimpleNamespace(latents=means + noise)

    images, positions = torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.tensor([3, 9, 4, 3, 7])
    whole = encode(Noisy(), images, 5, "none", Draws(1, positions))
    assert torch.equal(encode(Noisy(), images, 2, "none", Draws(1, positions)), whole)
    assert torch.equal(whole[0], whole[3]) and len(whole.unique()) == 12
    assert torch.equal(encode(Noisy(), images, 2, "none"), torch.full((5, 3, 1, 1), -1.0))
    data = CodeData(None, RecordDataset(place.folder / "images/train_lmdb"), None, None, Noisy(), "", CLASSES)
    Noisy.config = SimpleNamespace(image_size=8)
    recipe = small_recipe(place.folder, gpt=GPT, data=place.data(path="x", code_path=None, num_workers=0))
    batches = training_codes(data, recipe, ALONE, 0, 2)
    batch = next(batches)
    batches.close()
    means = batch.code - Draws(recipe.run.seed, batch.positions).normal("posterior", 3)[:, :, None, None]
    assert means.abs().max() <= 1.0001  # of pixels


def test_held_out_shards_of_a_cache_take_the_settings_of_shards(place, tmp_path):
    """Two members of each sample are images: data.image_key says which one is meant."""
    images = {f"{i}.jpg": jpeg(photo) for i, photo in enumerate(photographs()[:3])}
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        for name, content in images.items():
            for member, held in (
                (name, content),
                (name.replace("jpg", "png"), b""),
                (name.replace("jpg", "cls"), b"1"),
            ):
                info = tarfile.TarInfo(member)
                info.size = len(held)
                archive.addfile(info, io.BytesIO(held))
    file = write_cache(tmp_path / "train", made_by=tokenizer_hash(place.tokenizer), codes=64) / "cache.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "classes": None}))
    data = place.data(val_path=f"{tmp_path}/val.tar", image_key="jpg", label_key="none")
    held_out = open_codes(small_recipe(tmp_path, gpt=GPT, data=data), ALONE).held_out_records
    assert [held_out[i].image for i in range(3)] == list(images.values())
