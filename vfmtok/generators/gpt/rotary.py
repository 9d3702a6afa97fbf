"""Rotary positions on the grid of an image's tokens.

Shapes: B batch, T slots, H heads, E dimensions of a head, K tokens (N of them on the grid).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.layers.rotary import grid_rotary
from vfmtok.layers.rotary import rotate as rotate


def rotary_table(config: GPTConfig) -> Tensor:
    """Cosines and signed sines for ``rotate``: (2,1+K,1,E) float32, on the CPU.

    The grid's rows are those of ``grid_rotary``. Row 0, the class token's, is all
    zeros, which zeroes its query and key: released weights were trained so. Holistic slots come before, unturned: the
    row of zeros is then that of the last holistic token.
    """
    with torch.device("cpu"):  # also where the model is being built on the meta device
        grid = grid_rotary(config.side, config.head_dim, config.rope_base)  # (2,N,E)
        rows = F.pad(grid, (0, 0, 1, 0))  # (2,1+N,E)
        unturned = torch.stack(
            [
                torch.ones(config.num_holistic, config.head_dim),
                torch.zeros_like(rows[0, :1]).expand(config.num_holistic, -1),
            ]
        )
        return torch.cat([unturned, rows], dim=1)[:, :, None]  # (2,1+K,1,E)
