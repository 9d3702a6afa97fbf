"""The pixel decoder of VQGAN (Esser et al., 2021): a feature map to an image by convolutions, with attention at the
coarsest size only.

Shapes: B batch, C channels, h and w sides of a map.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.config import require, require_positive, require_share
from vfmtok.layers.memory_format import Convolutional
from vfmtok.layers.residual import ResBlock, SpatialAttention, group_norm
from vfmtok.weights.name_maps import Names


@dataclass(frozen=True)
class PixelDecoderConfig:
    """The VQGAN decoder: maps to pixels, doubling the side after every level but the last."""

    channels: int = 128
    multipliers: tuple[int, ...] = (4, 2, 2, 1, 1)  # coarse to fine
    res_blocks: int = 2
    dropout: float = 0.0
    coarse_attention: bool = False  # attention after every block of the coarsest level (LlamaGen; VFMTok has none)
    PINNED: ClassVar[dict[str, Any]] = {  # see weights/hashing.py; never changed, only added to
        "channels": 128,
        "multipliers": (4, 2, 2, 1, 1),
        "res_blocks": 2,
        "dropout": 0.0,
        "coarse_attention": False,
    }

    def __post_init__(self):
        require_positive(self, "pixel_decoder", "channels", "res_blocks")
        whole = len(self.multipliers) > 0 and min(self.multipliers) > 0
        require(whole, "pixel_decoder.multipliers", "must be one or more positive numbers", self.multipliers)
        grouped = all(self.channels * multiplier % 32 == 0 for multiplier in self.multipliers)
        require(grouped, "pixel_decoder.channels", "times every multiplier must be a multiple of 32", self.channels)
        require_share(self.dropout, "pixel_decoder.dropout")

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the map, per side."""
        return 2 ** (len(self.multipliers) - 1)


class PixelDecoder(Convolutional):
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
            DecoderLevel(in_width, width, config, config.coarse_attention and index == 0, upsample=index < last)
            for index, (in_width, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.conv_in(self.laid_out(z)))  # (B,C,g,g)
        for level in self.levels:
            x = level(x)  # (B,C,2h,2w), the last (B,C,S,S)
        return self.conv_out(F.silu(self.norm_out(x))).contiguous()  # (B,3,S,S)


class DecoderLevel(nn.Module):
    """Residual blocks at one size, then nearest-neighbour doubling smoothed by a convolution."""

    def __init__(self, in_width: int, width: int, config: PixelDecoderConfig, attention: bool, upsample: bool):
        super().__init__()
        count = config.res_blocks
        self.blocks = nn.Sequential(
            *(ResBlock(in_width if i == 0 else width, width, config.dropout) for i in range(count))
        )
        self.attentions = nn.ModuleList(SpatialAttention(width) for _ in range(count)) if attention else None
        self.upsample = nn.Conv2d(width, width, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x)  # (B,C,h,w)
            if self.attentions is not None:
                x = self.attentions[index](x)  # (B,C,h,w)
        if self.upsample is None:
            return x
        return self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # (B,C,2h,2w)


RELEASED: Names = (  # in the files of LlamaGen, VFMTok and Hita
    ("middle.*", "mid.*"),
    ("levels.*.blocks.*.shortcut", "conv_blocks.*.res.*.nin_shortcut"),
    ("levels.*.blocks.*", "conv_blocks.*.res.*"),
    ("levels.*.attentions.*", "conv_blocks.*.attn.*"),
    ("levels.*.upsample", "conv_blocks.*.upsample.conv"),
    ("conv_in", "conv_in"),
    ("norm_out", "norm_out"),
    ("conv_out", "conv_out"),
)
