"""VFMAE's bottleneck: region tokens to latents of few channels, deterministic and without a norm of what comes out.

Shapes: B batch, K region tokens on a grid (h,w), D width, C latent channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.layers.precision import at_least_float32
from vfmtok.layers.residual import group_norm


class Bottleneck(nn.Module):
    """Group norm over an image's tokens, swish, 1x1 convolution: a float32 island, as generators learn the result."""

    def __init__(self, dim: int, channels: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.norm_out = group_norm(dim)
        self.conv_out = nn.Conv2d(dim, channels, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,K,D) -> latents (B,C,h,w), float32 (float64 if the weights are)."""
        weight, bias, scale, shift = map(at_least_float32, (*self.conv_out.parameters(), *self.norm_out.parameters()))
        with torch.autocast(tokens.device.type, enabled=False):
            maps = tokens.to(weight.dtype).transpose(1, 2).unflatten(2, self.grid)  # (B,D,h,w)
            maps = F.group_norm(maps, self.norm_out.num_groups, scale, shift, self.norm_out.eps)  # (B,D,h,w)
            return F.conv2d(F.silu(maps), weight, bias)  # (B,C,h,w)
