"""The switches of TF32, which must not hinder each other."""

import pytest
import torch

from vfmtok.layers.precision import allow_tf32, full_float32


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_as_it_was_after_full_float32(allowed):
    """And can be read by torch.compile, which raises where PyTorch's older and newer switches disagree."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        allow_tf32(allowed)
        with full_float32("cpu"):
            newer = getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee")
            assert newer == "ieee"
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
