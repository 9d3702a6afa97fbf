"""Editing an image through its tokens: which of them a region of the image is, and one image in the style of another.

Shapes: B batch, K tokens, S image side, h, w the grid on which a segment's tokens lie.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok.code import Code, Ids
from vfmtok.errors import ConfigError
from vfmtok.tokenizers.contract import Tokenizer

REGIONS = ("bottom", "top", "left", "right", "centre", "checkerboard", "scattered")


def region(name: str, grid: tuple[int, int], share: float) -> np.ndarray:
    """(h,w) bool, True in the named part of a grid: about ``share`` of its cells; sides are whole lines.

    Raises ConfigError for a name that is not in ``REGIONS``, or a share outside [0,1].
    """
    if name not in REGIONS or not 0 <= share <= 1:
        raise ConfigError(f"a region is one of {', '.join(REGIONS)} with a share from 0 to 1, got '{name}', {share}")
    height, width = grid
    row, column = np.mgrid[:height, :width]
    lines = {
        "bottom": row >= height - round(share * height),
        "top": row < round(share * height),
        "left": column < round(share * width),
        "right": column >= width - round(share * width),
    }
    if name in lines:
        return lines[name]
    if name == "centre":
        rank = np.hypot(row - (height - 1) / 2, column - (width - 1) / 2)
    elif name == "checkerboard":
        rank = (row + column) % 2 == 0
    else:
        rank = np.random.default_rng(0).permutation(height * width).reshape(grid)
    mask = np.zeros(height * width, bool)
    mask[rank.ravel().argsort(kind="stable")[: round(share * height * width)]] = True
    return mask.reshape(grid)


def grid_of(code: Code) -> tuple[int, int]:
    """(h,w) of the segment whose tokens lie in the image. Raises ConfigError where none does."""
    grids = [segment.grid for segment in code.segments if segment.grid is not None] if isinstance(code, Ids) else []
    if len(grids) != 1:
        raise ConfigError(f"{code} have no grid in the image, so no part of them can be chosen by its place")
    return grids[0]


def kept_tokens(code: Ids, redrawn: Tensor) -> Tensor:
    """Cells to redraw (h,w) bool -> tokens to keep (K,) bool; those without a place are kept."""
    parts = [~redrawn.flatten() if part.grid is not None else redrawn.new_ones(part.count) for part in code.segments]
    return torch.cat(parts)


def without_region(images: Tensor, redrawn: Tensor) -> Tensor:
    """images (B,3,S,S), cells (h,w) bool -> the images with mid-grey (0) where these cells lie."""
    cells = F.interpolate(redrawn[None, None].float(), images.shape[2:], mode="nearest") > 0  # (1,1,S,S)
    return torch.where(cells.to(images.device), torch.zeros_like(images), images)


def styled_ids(code: Code, content: Tensor, style: Tensor) -> Tensor:
    """ids (B,K) of two sets of images -> (B,K): tokens with a place in the image from ``content``, those without, which
    say what holds for all of it, from ``style``. Raises ConfigError for a code without tokens of both kinds."""
    kinds = {segment.grid is None for segment in code.segments} if isinstance(code, Ids) else set()
    if kinds != {True, False}:
        raise ConfigError(f"style transfer needs holistic tokens beside those of a grid, as Hita has; this is {code}")
    parts = zip(code.segments, code.slices(), strict=True)
    return torch.cat([(style if segment.grid is None else content)[:, part] for segment, part in parts], dim=1)


@torch.no_grad()
def transfer_style(tokenizer: Tokenizer, content: Tensor, style: Tensor) -> Tensor:
    """images (B,3,S,S) and (B,3,S,S) in [-1,1] -> (B,3,S,S): the first in the style of the second, without training.

    The first's patch ids and the second's holistic ids are decoded together (Hita, arXiv 2507.02358).

    Raises ConfigError for a tokenizer without holistic tokens.
    """
    encoded: list[Any] = [tokenizer.encode(images).ids for images in (content, style)]
    return tokenizer.decode(styled_ids(tokenizer.code, *encoded))
