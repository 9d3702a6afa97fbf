"""Learned position tables on square grids: how they start and how they change size.

Shapes: G side of the stored grid, g side of the wanted grid, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resample_by_scale(table: Tensor, grid: int) -> Tensor:
    """Bicubic resampling (1,G*G,D) -> (1,grid*grid,D) by the factor (grid + 0.1) / G.

    The factor itself, not the ratio of the sizes, sets the sampling positions, without
    antialiasing. Meta's ViTs (DINO, DINOv2 without registers) resample so, and the released
    VFMTok decoder with them; its weights depend on it. Equal sides return the table unchanged.
    """
    stored = math.isqrt(table.shape[1])
    if stored == grid:
        return table
    grid_map = table.reshape(1, stored, stored, -1).permute(0, 3, 1, 2).float()  # (1,D,G,G)
    scale = (grid + 0.1) / stored
    grid_map = F.interpolate(grid_map, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    return grid_map.permute(0, 2, 3, 1).reshape(1, grid * grid, -1).to(table.dtype)  # (1,g*g,D)


def resample_plainly(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bicubic resampling (1,H*W,D) -> (1,h*w,D) to a size, without antialiasing. Equal sizes return it unchanged."""
    if old == new:
        return table
    grid_map = table.reshape(1, *old, -1).permute(0, 3, 1, 2).float()  # (1,D,H,W)
    grid_map = F.interpolate(grid_map, new, mode="bicubic", align_corners=False)
    return grid_map.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)  # (1,h*w,D)


def position_table(length: int, dim: int, start: str) -> nn.Parameter:
    """A learned (1,length,dim) table; ``start`` is "random" (normal, std dim^-0.5) or "sincos".

    "sincos" lays ``length`` = side*side positions on a square grid in row order.
    """
    if start == "random":
        return nn.Parameter(torch.randn(1, length, dim) * dim**-0.5)
    return nn.Parameter(sincos_2d(math.isqrt(length), dim)[None])


def sincos_2d(side: int, dim: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (side*side, dim), row half first, with unit rows' scale dim^-0.5.

    Wave lengths are those of Vaswani et al. (2017), base 10000; ``dim`` must be a multiple of 4.
    """
    frequencies = 10000.0 ** (-torch.arange(dim // 4) / (dim // 4))  # (D/4,)
    angles = torch.arange(side)[:, None] * frequencies  # (side,D/4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (side,D/2)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, dim) * math.sqrt(2 / dim)
