"""What the entry points are tested on: a tiny tokenizer and GPT in released files, and a dataset with a bad record."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from image_makers import ROOT, encoded
from tiny_gpt import random_gpt

import vfmtok
from vfmtok import distributed
from vfmtok.config import dump_config, save_config, with_overrides
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.tokenizers import load_config
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.weights.checkpoint import Checkpoint, CheckpointFolder
from vfmtok.weights.hashing import tokenizer_hash

CONFIG = ROOT / "configs/tiny.yaml"
BAD = 4  # the record that does not decode
COUNT = 14
WORLD = distributed.World(0, 1, torch.device("cpu"))
GPT_SHAPE = ("--gpt-set", "n_layer=3", "--gpt-set", "n_head=4", "--gpt-set", "dim=64")


def tokenizer(*overrides: str) -> vfmtok.VFMTok:
    torch.manual_seed(0)
    model = vfmtok.VFMTok(vfmtok.load_config(CONFIG, overrides))
    model.encoder.load_official(_encoder_weights())
    return model.eval().requires_grad_(False)


def _encoder_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return timm.create_model("test_vit", num_classes=0).state_dict()


def gpt(**overrides) -> vfmtok.GPT:
    return random_gpt(**{"vocab_size": 64, "num_classes": 3, **overrides})


def write_models(folder: Path) -> list[object]:
    """The flags that name what is written: the tokenizer, its configuration and its encoder; gpt.pt lies beside."""
    torch.save(vfmtok.to_released(tokenizer()), folder / "tokenizer.pt")
    torch.save(_encoder_weights(), folder / "encoder.pt")
    torch.save(vfmtok.to_released(gpt()), folder / "gpt.pt")
    encoder = f"encoder.weights={folder / 'encoder.pt'}"
    return ["--vq-ckpt", folder / "tokenizer.pt", "--transformer-config-file", CONFIG, "--set", encoder]


def write_runs(folder: Path) -> tuple[Path, Path]:
    """Checkpoints of two runs: a tokenizer's, and that of a generator of its tokens, which knows its classes."""
    model, recipes = tokenizer(), (folder / "tok", folder / "gpt")
    for path in recipes:
        path.mkdir(parents=True)
    torch.save(_encoder_weights(), folder / "encoder.pt")
    config = with_overrides(load_config(CONFIG), [f"encoder.weights={folder / 'encoder.pt'}"])
    save_config(TokenizerRecipe(tokenizer=config), folder / "tok/config.yaml")
    own = {name: t.contiguous() for name, t in model.state_dict().items() if not name.startswith("encoder.")}
    safetensors.torch.save_file(own, folder / "tok/model.safetensors")
    generator = gpt()
    recipe = GeneratorRecipe(generator=generator.config)
    tokens = {"classes": ["apple", "bird", "cup"], "tokenizer_hash": tokenizer_hash(model)}
    saved = Checkpoint(1, {"model": generator.state_dict()}, {"parts": {"tokens": tokens}}, dump_config(recipe))
    (folder / "gpt").rmdir()
    CheckpointFolder(folder).save(saved).rename(folder / "gpt")
    return recipes


def write_dataset(folder: Path) -> RecordDataset:
    content = [encoded(i, (40, 36)) for i in range(COUNT)]
    content[BAD] = content[BAD][:60]
    write_records(folder, [Record(c, i % 3, f"{i}") for i, c in enumerate(content)], classes=["a", "b", "c"])
    return RecordDataset(folder)


def run_script(script: str, *arguments: object, processes: int = 1, timeout: float = 240):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def values(results: dict) -> dict[str, float]:
    return {name: entry["value"] for name, entry in results["numbers"].items()}


def samples_in(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / "samples.npz") as archive:
        return archive["arr_0"], archive["labels"]
