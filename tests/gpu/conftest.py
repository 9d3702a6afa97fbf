"""Tests that need a GPU. ``VFMTOK_TEST_DEVICE=cpu pytest -m gpu tests/gpu`` runs what it can on a CPU, so that the
tests themselves are known to work."""

import os

import pytest
import torch

from vfmtok.layers.precision import allow_tf32


@pytest.fixture(scope="session")
def device() -> torch.device:
    named = os.environ.get("VFMTOK_TEST_DEVICE")
    if named is None and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return torch.device(named or "cuda")


@pytest.fixture(scope="session")
def cuda(device) -> torch.device:
    """Where a CPU can't stand in."""
    if device.type != "cuda":
        pytest.skip("needs CUDA itself")
    return device


@pytest.fixture(autouse=True)
def float32_means_float32():
    allow_tf32(False)
