"""The pixel decoder of VQGAN (Esser et al., 2021): a feature map to an image, convolutions only but
for one attention layer at the coarsest size.

Shapes: B batch, C channels, h and w sides of a map.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.config import require, require_positive, require_share


@dataclass(frozen=True)
class PixelDecoderConfig:
    """The VQGAN decoder: maps to pixels, doubling the side after every level but the last."""

    channels: int = 128
    multipliers: tuple[int, ...] = (4, 2, 2, 1, 1)  # coarse to fine
    res_blocks: int = 2
    dropout: float = 0.0

    def __post_init__(self):
        require_positive(self, "pixel_decoder", "channels", "res_blocks")
        whole = len(self.multipliers) > 0 and min(self.multipliers) > 0
        require(whole, "pixel_decoder.multipliers", "must be one or more positive numbers", self.multipliers)
        grouped = all(self.channels * multiplier % 32 == 0 for multiplier in self.multipliers)
        require(grouped, "pixel_decoder.channels", "times every multiplier must be a multiple of 32", self.channels)
        require_share(self.dropout, "pixel_decoder.dropout")


class PixelDecoder(nn.Module):
    """(B,z_channels,g,g) -> (B,3,S,S), S = g * 2^(levels - 1), nominally in [-1,1]."""

    def __init__(self, config: PixelDecoderConfig, z_channels: int):
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]  # coarse to fine
        self.conv_in = nn.Conv2d(z_channels, widths[0], 3, padding=1)
        self.middle = nn.Sequential(
            ResBlock(widths[0], widths[0], config.dropout),
            SpatialAttention(widths[0]),
            ResBlock(widths[0], widths[0], config.dropout),
        )
        inputs = [widths[0], *widths[:-1]]
        last = len(widths) - 1
        self.levels = nn.ModuleList(
            DecoderLevel(in_width, width, config, upsample=index < last)
            for index, (in_width, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = _group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        # Convolutions run up to twice as fast with the channels last. A copy, since a batch of 1 can look
        # contiguous to ``contiguous`` and not to them.
        z = z.clone(memory_format=torch.channels_last)
        x = self.middle(self.conv_in(z))  # (B,C,g,g)
        for level in self.levels:
            x = level(x)  # (B,C,2h,2w), the last (B,C,S,S)
        return self.conv_out(F.silu(self.norm_out(x))).contiguous()  # (B,3,S,S)


class DecoderLevel(nn.Module):
    """Residual blocks at one size, then nearest-neighbour doubling smoothed by a convolution."""

    def __init__(self, in_width: int, width: int, config: PixelDecoderConfig, upsample: bool):
        super().__init__()
        self.blocks = nn.Sequential(
            *(ResBlock(in_width if i == 0 else width, width, config.dropout) for i in range(config.res_blocks))
        )
        self.upsample = nn.Conv2d(width, width, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)  # (B,C,h,w)
        if self.upsample is None:
            return x
        return self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # (B,C,2h,2w)


class ResBlock(nn.Module):
    """norm, swish, conv, norm, swish, dropout, conv, added to the input (1x1 conv if widths differ)."""

    def __init__(self, in_width: int, width: int, dropout: float):
        super().__init__()
        self.norm1 = _group_norm(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1)
        self.norm2 = _group_norm(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(in_width, width, 1) if in_width != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B,C,h,w)
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))  # (B,C,h,w)
        return self.shortcut(x) + h


class SpatialAttention(nn.Module):
    """Single-head self-attention over all cells, with 1x1 convolutions as projections."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = _group_norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)  # (B,C,h,w)
        q, k, v = (_as_tokens(project(h)) for project in (self.q, self.k, self.v))  # 3 x (B,1,h*w,C)
        out = F.scaled_dot_product_attention(q, k, v)  # (B,1,h*w,C), scaled by C^-0.5
        return x + self.proj_out(out.squeeze(1).transpose(1, 2).reshape(x.shape))  # (B,C,h,w)


def _as_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2).unsqueeze(1)  # (B,C,h,w) -> (B,1,h*w,C)


def _group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)
