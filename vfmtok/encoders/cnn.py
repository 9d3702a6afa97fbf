"""The convolutional encoder of VQGAN (Esser et al., 2021; LlamaGen's VQ-16 and VQ-8), trained with the rest.

Shapes: B batch, S image side, C channels, g side of the map.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.config import require, require_positive, require_share
from vfmtok.layers.memory_format import Convolutional
from vfmtok.layers.residual import ResBlock, SpatialAttention, group_norm
from vfmtok.weights.name_maps import Names


@dataclass(frozen=True)
class CNNEncoderConfig:
    """Its size. The stride is 2^(levels - 1)."""

    kind: Literal["cnn"] = "cnn"
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # fine to coarse
    res_blocks: int = 2
    dropout: float = 0.0

    frozen = False  # it has no weights but those it learns here

    def __post_init__(self):
        require_positive(self, "encoder", "channels", "res_blocks")
        whole = len(self.multipliers) > 0 and min(self.multipliers) > 0
        require(whole, "encoder.multipliers", "must be one or more positive numbers", self.multipliers)
        grouped = all(self.channels * multiplier % 32 == 0 for multiplier in self.multipliers)
        require(grouped, "encoder.channels", "times every multiplier must be a multiple of 32", self.channels)
        require_share(self.dropout, "encoder.dropout")

    @property
    def stride(self) -> int:
        """Pixels per cell of the map, per side."""
        return 2 ** (len(self.multipliers) - 1)


class CNNEncoder(Convolutional):
    """(B,3,S,S) in [-1,1] -> (B,z_channels,g,g), S = g * stride."""

    def __init__(self, config: CNNEncoderConfig, z_channels: int):
        super().__init__()
        self.config = config
        widths = [config.channels * multiplier for multiplier in config.multipliers]  # fine to coarse
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        inputs = [config.channels, *widths[:-1]]
        last = len(widths) - 1
        self.levels = nn.ModuleList(
            EncoderLevel(in_width, width, config, coarsest=index == last)
            for index, (in_width, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.middle = nn.Sequential(
            ResBlock(widths[-1], widths[-1], config.dropout),
            SpatialAttention(widths[-1]),
            ResBlock(widths[-1], widths[-1], config.dropout),
        )
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(self.laid_out(images))  # (B,C,S,S)
        for level in self.levels:
            x = level(x)  # (B,C,h/2,w/2), the last (B,C,g,g)
        x = self.middle(x)  # (B,C,g,g)
        return self.conv_out(F.silu(self.norm_out(x))).contiguous()  # (B,z_channels,g,g)


class EncoderLevel(nn.Module):
    """Residual blocks at one size, then halving; the coarsest has attention after every block instead."""

    def __init__(self, in_width: int, width: int, config: CNNEncoderConfig, coarsest: bool):
        super().__init__()
        count = config.res_blocks
        self.blocks = nn.Sequential(
            *(ResBlock(in_width if i == 0 else width, width, config.dropout) for i in range(count))
        )
        self.attentions = nn.ModuleList(SpatialAttention(width) for _ in range(count)) if coarsest else None
        self.downsample = None if coarsest else nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x)  # (B,C,h,w)
            if self.attentions is not None:
                x = self.attentions[index](x)  # (B,C,h,w)
        if self.downsample is None:
            return x
        return self.downsample(F.pad(x, (0, 1, 0, 1)))  # (B,C,h/2,w/2); a column right and a row below, as published


RELEASED: Names = (  # in the files of LlamaGen, VFMTok and Hita
    ("middle.*", "mid.*"),
    ("levels.*.blocks.*.shortcut", "conv_blocks.*.res.*.nin_shortcut"),
    ("levels.*.blocks.*", "conv_blocks.*.res.*"),
    ("levels.*.attentions.*", "conv_blocks.*.attn.*"),
    ("levels.*.downsample", "conv_blocks.*.downsample.conv"),
    ("conv_in", "conv_in"),
    ("norm_out", "norm_out"),
    ("conv_out", "conv_out"),
)
