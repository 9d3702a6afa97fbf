"""Models as the release has them: written by rule, with the release's extras."""

import argparse
from pathlib import Path

import pytest
import timm
import torch
from saved_models import torch_file
from tiny_gpt import random_gpt

import vfmtok


@pytest.fixture
def encoder_file(tmp_path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "encoder.pt"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


@pytest.fixture
def tokenizer(tiny_tokenizer, encoder_file) -> vfmtok.VFMTok:
    return tiny_tokenizer(f"encoder.weights={encoder_file}").eval().requires_grad_(False)


@pytest.fixture
def gpt() -> vfmtok.GPT:
    return random_gpt(vocab_size=64, num_classes=3).requires_grad_(False)


@pytest.fixture
def released(tokenizer, gpt) -> dict[str, bytes]:
    """Files of the published repository: the average beside other weights, the step, the command line's namespace."""
    args = argparse.Namespace(lr=1e-4, results_dir="output", ema=True, beta=(0.9, 0.95), ckpt=None)
    files = {}
    for part, model in (("tokenizer/vfmtok-tokenizer", tokenizer), ("GPT-B/GPT-B-300e", gpt)):
        average = vfmtok.to_released(model)
        other = {name: tensor + 1 for name, tensor in average.items()}
        files[f"DINOv2/{part}.pt"] = torch_file({"model": other, "ema": average, "steps": 7, "args": args})
    return files
