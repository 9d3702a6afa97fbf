"""A generator that is no transformer is trained, resumed, sampled and measured by the unchanged commands."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

GOLDEN = Path(__file__).parents[1] / "golden/v0_1"
FAMILY = Path(__file__).with_name("unigram_family.py")
RECIPE = """
generator: {kind: unigram}
optimizer: {lr: 0.5, lr_batch: null, warmup_epochs: 0, weight_decay: 0.0}
ema: {decay: 0.5}
pictures: {every: 4, classes: 2, per_class: 2, cfg_scale: 1.0}
run: {global_batch: 8, precision: none, log_every: 1, save_every: 4, validate_every: 4, tensorboard: false}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tokenizer's run and its codes."""
    folder = tmp_path_factory.mktemp("unigram")
    with tarfile.open(GOLDEN / "artefacts.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    (folder / "unigram.yaml").write_text(RECIPE)
    run(folder, "train_c2i.py", "--results-dir", "whole", "--set", "optimizer.steps=12", *named())
    return folder


def named() -> list[str]:
    return ["--recipe", "unigram.yaml", "--code-path", "codes/train", "--vq-ckpt", "tokenizer_run"]


def run(folder: Path, script: str, *arguments: str) -> str:
    command = [sys.executable, FAMILY, script, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(run_folder: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run_folder / f"checkpoints/step_{step:07d}"
    files = {name: safetensors.torch.load_file(folder / f"{name}.safetensors") for name in ("model", "ema")}
    return {f"{part}.{name}": tensor for part, found in files.items() for name, tensor in found.items()}


def log(run_folder: Path) -> list[dict]:
    return [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]


def test_it_learns(place):
    lines = log(place / "whole")
    losses = [line["loss/token"] for line in lines if "loss/token" in line]
    assert losses[-1] < 0.8 * losses[0]
    validated = [line for line in lines if "validation/loss" in line]
    assert validated and all(line["validation/unigram"] > 0 for line in validated)
    assert (place / "whole/finished").exists()
    assert list((place / "whole/pictures").glob("samples_*.png"))


@pytest.mark.slow
def test_a_run_that_was_cut_continues_bit_for_bit(place):
    run(place, "train_c2i.py", "--results-dir", "cut", "--set", "optimizer.steps=8", *named())
    run(place, "train_c2i.py", "--results-dir", "cut", "--set", "optimizer.steps=12", *named())
    whole, cut = weights(place / "whole", 12), weights(place / "cut", 12)
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


def test_labels_are_dropped_alike_for_any_split_of_the_batch(place):
    """Two passes of four samples train as one pass of eight, but for rounding."""
    settings = ("--set", "optimizer.steps=12", "--set", "run.accumulation=2")
    run(place, "train_c2i.py", "--results-dir", "halves", *settings, *named())
    for name, tensor in weights(place / "whole", 12).items():
        torch.testing.assert_close(weights(place / "halves", 12)[name], tensor, rtol=1e-4, atol=1e-5)


def test_it_is_sampled_and_measured(place):
    models = ("--gpt", "whole", "--vq-ckpt", "tokenizer_run")
    run(place, "vfmtok", "sample", *models, "--classes", "0,2", "--n", "2", "--cfg-scale", "2", "--out", "grid.png")
    assert np.asarray(Image.open(place / "grid.png")).std() > 0
    flags = ("--image-size-eval", "32", "--num-fid-samples", "6", "--no-fid", "--sample-dir", "samples")
    said = run(place, "test_net.py", "--gpt-ckpt", "whole", "--vq-ckpt", "tokenizer_run", *flags)
    results = list((place / "samples").rglob("results.json"))
    assert len(results) == 1 and "6" in said
