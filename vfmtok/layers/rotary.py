"""Rotary positions on a square grid (RoFormer, arXiv 2104.09864, on two axes).

Shapes: B batch, T slots, H heads, E dimensions of a head, N cells of the grid.
"""

import torch
from torch import Tensor

from vfmtok.layers.precision import at_least_float32


def grid_rotary(side: int, head_dim: int, base: float = 10000.0) -> Tensor:
    """Cosines and signed sines for ``rotate``, cell by cell in row order: (2,N,E) float32, on the CPU.

    In each half of a head (the first turns with the row, the second with the column) the pair of
    dimensions (2i, 2i+1) turns by position * base^(-2i/(E/2)).
    """
    half = head_dim // 2
    with torch.device("cpu"):  # also where the model is being built on the meta device
        frequencies = base ** (-torch.arange(0, half, 2).float() / half)  # (E/4,)
        cell = torch.arange(side**2)
        positions = torch.stack([cell // side, cell % side], dim=1)  # (N,2)
        angles = (positions[:, :, None] * frequencies).flatten(1)  # (N,E/2), row half first
        cosine, sine = angles.cos(), angles.sin()
        cosine = torch.stack([cosine, cosine], dim=-1).flatten(1)  # (N,E)
        sine = torch.stack([-sine, sine], dim=-1).flatten(1)  # (N,E)
        return torch.stack([cosine, sine])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """x (B,T,2,H,E), rotary (2,T,1,E) or of every sample (2,B,T,1,E) -> (B,T,2,H,E) float32: (a,b) -> (a cos - b sin,
    b cos + a sin) in pairs."""
    x = at_least_float32(x)
    cosine, sine = rotary.unsqueeze(-3)  # 2 x (T,1,1,E) or 2 x (B,T,1,1,E)
    swapped = x.unflatten(-1, (-1, 2)).roll(1, -1).flatten(-2)  # (a,b) -> (b,a)
    return torch.addcmul(x * cosine, swapped, sine)
