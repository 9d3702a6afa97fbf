"""Attention of one slot over a cache, and the choice of a kernel."""

import pytest
import torch

from vfmtok.generators.causal_attention import attention_path, cached_attention, causal_attention


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_cached_attention_is_the_last_row_of_causal_attention(dtype, tolerance):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 10, 4, 16).to(dtype)
    expected = causal_attention(q, k, v)[:, 6:7]
    mask = torch.zeros(10, dtype=dtype).masked_fill(torch.arange(10) > 6, -torch.inf)
    keys, values = (x.transpose(1, 2).contiguous() for x in (k, v))
    assert (cached_attention(q[:, 6:7], keys, values, mask) - expected).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_path(dtype):
    assert attention_path("cpu", dtype, batch=2, length=16, heads=2, head_dim=8) == "sdpa"
