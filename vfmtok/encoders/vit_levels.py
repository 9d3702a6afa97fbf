"""The levels of a ViT of timm, its embedding among them, at any size of the images.

Shapes: B batch, H and W image sides, h and w cells per side, C channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def read_vit(
    backbone: nn.Module,
    images: Tensor,
    levels: tuple[int, ...],
    resampled: Callable[[Tensor, nn.Module, tuple[int, int]], Tensor],
    return_prefix_tokens: bool = False,
) -> list[Tensor] | list[tuple[Tensor, Tensor]]:
    """Normalised images (B,3,H,W) -> maps (B,C,h,w) behind block k of every level k; of level 0, of the patches with
    their positions.

    Args:
        resampled: (position table, backbone, (h,w)) -> the table of that grid.
        return_prefix_tokens: give (map, class and register tokens (B,P,C)) for each level.
    """
    x = backbone.patch_embed.proj(images)  # (B,C,h,w)
    grid = tuple(x.shape[2:])
    x = backbone.norm_pre(
        _with_positions(backbone, backbone.patch_embed.norm(x.flatten(2).transpose(1, 2)), grid, resampled)
    )
    prefix, found = backbone.num_prefix_tokens, []
    for number in range(levels[-1] + 1):
        if number:
            x = backbone.blocks[number - 1](x)  # (B,P+h*w,C)
        if number in levels:
            cells = x[:, prefix:].transpose(1, 2).unflatten(2, grid)  # (B,C,h,w)
            found.append((cells, x[:, :prefix]) if return_prefix_tokens and prefix else cells)
    return found


def _with_positions(backbone: nn.Module, x: Tensor, grid: tuple[int, int], resampled: Callable) -> Tensor:
    """Patches (B,h*w,C) with class and register tokens before them and positions added."""
    tokens = [token for token in (backbone.cls_token, backbone.reg_token) if token is not None]
    prefix = [token.expand(len(x), -1, -1) for token in tokens]
    table = resampled(backbone.pos_embed, backbone, grid)
    if backbone.no_embed_class:  # they have no position
        return torch.cat([*prefix, x + table], dim=1)
    return torch.cat([*prefix, x], dim=1) + table
