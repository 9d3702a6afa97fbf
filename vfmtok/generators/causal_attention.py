"""Causal attention: over a whole sequence, and of its last slot over cached ones; and which kernel computes it.

Shapes: B batch, T slots, H heads, E dimensions of a head, c cached slots.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

AttentionPath = Literal["sdpa", "flash-attn"]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, path: AttentionPath = "sdpa") -> Tensor:
    """q, k, v (B,T,H,E) -> (B,T,H,E): slot n attends to slots 0..n, scaled by E^-0.5.

    "sdpa" is PyTorch's own choice among its fused kernels, on any device and in any dtype; "flash-attn"
    the package of that name, for bfloat16 and float16 on CUDA.
    """
    if path == "flash-attn":
        from flash_attn import flash_attn_func

        return flash_attn_func(q, k, v, causal=True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B,H,T,E)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """q (B,1,H,E), keys and values (B,H,c,E), mask (c,) -> (B,1,H,E): one slot attends to a cache.

    softmax(q k^T * E^-0.5 + mask) v. On CPUs as two batched products: PyTorch's fused kernel works in
    blocks of queries, of which there is one, and takes three times as long in bfloat16.
    """
    if q.device.type != "cpu":
        out = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask[None])  # (B,H,1,E)
        return out.transpose(1, 2)
    batch, _, heads, width = q.shape
    q, keys, values = q.reshape(batch * heads, 1, width), keys.flatten(0, 1), values.flatten(0, 1)  # (B*H,1 or c,E)
    scores = torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=width**-0.5)  # (B*H,1,c)
    p = scores.softmax(dim=-1)  # on CPUs computed in float32 whatever its dtype, and rounded once
    return (p.to(values.dtype) @ values).view(batch, 1, heads, width)


def attention_path(
    device: torch.device | str, dtype: torch.dtype, batch: int, length: int, heads: int, head_dim: int
) -> AttentionPath:
    """The faster path for training on tensors (batch,length,heads,head_dim) of this device and dtype.

    Where flash-attn is not installed or does not apply that is "sdpa"; where it does, both are timed,
    forward and backward. (PyTorch carries a kernel of the same design, so installing the package need not gain.)
    """
    device = torch.device(device)
    fits = head_dim % 8 == 0 and head_dim <= 256  # what flash-attn's kernels take; not so GPT-2B (60) and GPT-3B (100)
    applies = fits and device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if not applies or importlib.util.find_spec("flash_attn") is None:
        return "sdpa"
    shape = (batch, length, heads, head_dim)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

    def step(path: AttentionPath) -> None:
        out = causal_attention(q, k, v, path)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    return min(("sdpa", "flash-attn"), key=lambda path: _seconds(lambda: step(path), device))


def _seconds(function: Callable[[], None], device: torch.device, repeat: int = 10) -> float:
    """Wall time of ``repeat`` calls, after three to warm up."""
    for _ in range(3):
        function()
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeat):
        function()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start
