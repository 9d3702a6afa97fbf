"""A tokenizer's training chooses the memory format of its convolutions."""

import pytest
import torch
from image_place import ALONE

from vfmtok.training import tokenizer_run


@pytest.mark.parametrize("cpu, wanted", [("AVX2", torch.contiguous_format), ("AVX512", torch.channels_last)])
def test_a_training_chooses(tiny_recipe, monkeypatch, cpu, wanted):
    """By the instructions of the CPU; small images stay as they are."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    recipe = tiny_recipe()
    small = tokenizer_run.TokenizerRun(recipe, ALONE)
    assert small.tokenizer.pixel_decoder.training_format is torch.channels_last
    monkeypatch.setattr(tokenizer_run, "LARGE_IMAGE", 32)
    run = tokenizer_run.TokenizerRun(recipe, ALONE)
    assert run.tokenizer.pixel_decoder.training_format is wanted
    assert any("NCHW" in line for line in run.notes) == (wanted is torch.contiguous_format)
