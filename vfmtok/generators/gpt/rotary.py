"""Rotary positions on the grid of an image's tokens.

Shapes: B batch, T slots, H heads, E dimensions of a head, K tokens (N of them on the grid).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.layers.precision import at_least_float32


def rotary_table(config: GPTConfig) -> Tensor:
    """Cosines and signed sines for ``rotate``: (2,1+K,1,E) float32, on the CPU.

    In each half of a head (the first turns with the row, the second with the column) the pair of
    dimensions (2i, 2i+1) turns by position * base^(-2i/(E/2)). Row 0, the class token's, is all
    zeros, which zeroes its query and key: released weights were trained so. Holistic slots come before, unturned: the
    row of zeros is then that of the last holistic token.
    """
    half = config.head_dim // 2
    with torch.device("cpu"):  # also where the model is being built on the meta device
        frequencies = config.rope_base ** (-torch.arange(0, half, 2).float() / half)  # (E/4,)
        cell = torch.arange(config.num_tokens)
        positions = torch.stack([cell // config.side, cell % config.side], dim=1)  # (K,2)
        angles = (positions[:, :, None] * frequencies).flatten(1)  # (K,E/2), row half first
        cosine, sine = angles.cos(), angles.sin()
        cosine = torch.stack([cosine, cosine], dim=-1).flatten(1)  # (K,E)
        sine = torch.stack([-sine, sine], dim=-1).flatten(1)  # (K,E)
        rows = F.pad(torch.stack([cosine, sine]), (0, 0, 1, 0))  # (2,1+N,E), N tokens of the grid
        unturned = torch.stack(
            [
                torch.ones(config.num_holistic, config.head_dim),
                torch.zeros_like(rows[0, :1]).expand(config.num_holistic, -1),
            ]
        )
        return torch.cat([unturned, rows], dim=1)[:, :, None]  # (2,1+K,1,E)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """x (B,T,2,H,E), rotary (2,T,1,E) or of every sample (2,B,T,1,E) -> (B,T,2,H,E) float32: (a,b) -> (a cos - b sin,
    b cos + a sin) in pairs."""
    x = at_least_float32(x)
    cosine, sine = rotary.unsqueeze(-3)  # 2 x (T,1,1,E) or 2 x (B,T,1,1,E)
    swapped = x.unflatten(-1, (-1, 2)).roll(1, -1).flatten(-2)  # (a,b) -> (b,a)
    return torch.addcmul(x * cosine, swapped, sine)
