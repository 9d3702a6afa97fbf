"""Several cosine codebooks, each of which quantizes its own part of the channels.

Shapes: B batch, N cells, Q codebooks, C = Q * E channels, V rows of one codebook.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.config import require, require_not_negative, require_positive
from vfmtok.layers.precision import at_least_float32
from vfmtok.quantizers.cosine import CosineConfig, CosineQuantizer, Quantized


@dataclass(frozen=True)
class MultiCodebookConfig:
    """The defaults are VFM-VAE's."""

    kind: Literal["multi-codebook"] = "multi-codebook"
    codebooks: int = 8
    codebook_size: int = 4096  # rows of each
    channels: int = 64  # of all together
    commit_weight: float = 0.25
    entropy_weight: float = 0.0  # weight of the entropy loss; 0 leaves it out
    entropy_temperature: float = 0.01

    def __post_init__(self):
        require_positive(self, "bottleneck", "codebooks", "codebook_size", "channels", "entropy_temperature")
        require_not_negative(self, "bottleneck", "commit_weight", "entropy_weight")
        splits = self.channels % self.codebooks == 0
        require(splits, "bottleneck.channels", f"must be a multiple of codebooks, {self.codebooks}", self.channels)

    @property
    def code_dim(self) -> int:
        """E, of one codebook."""
        return self.channels // self.codebooks

    @property
    def input_width(self) -> int:
        """Channels of what is quantized."""
        return self.channels


class MultiCodebookQuantizer(nn.Module):
    """Channels split in consecutive parts, each with a codebook of its own; losses are means over codebooks."""

    ENTROPY_FLOOR = 1e-7

    def __init__(self, config: MultiCodebookConfig):
        super().__init__()
        self.config = config
        one = CosineConfig(
            codebook_size=config.codebook_size,
            code_dim=config.code_dim,
            commit_weight=config.commit_weight,
            entropy_temperature=config.entropy_temperature,
        )
        self.codebooks = nn.ModuleList(CosineQuantizer(one) for _ in range(config.codebooks))
        bound = config.code_dim**-0.5 / 36
        for codebook in self.codebooks:
            nn.init.uniform_(codebook.codebook, -bound, bound)

    def forward(self, features: Tensor) -> Quantized:
        """features (B,N,C) -> codes (B,N,C), Q unit vectors side by side, and ids (B,Q,N)."""
        parts = features.chunk(len(self.codebooks), dim=2)  # Q x (B,N,E)
        found = [quantizer(part) for quantizer, part in zip(self.codebooks, parts, strict=True)]
        losses = {name: torch.stack([one.losses[name] for one in found]).mean() for name in ("vq", "commit", "entropy")}
        if self.config.entropy_weight and self.training:
            with torch.autocast(features.device.type, enabled=False):
                units = [F.normalize(at_least_float32(part), dim=-1) for part in parts]
                pairs = zip(self.codebooks, units, strict=True)
                entropies = [quantizer.entropy_loss(unit, self.ENTROPY_FLOOR) for quantizer, unit in pairs]
            losses["entropy"] = self.config.entropy_weight * torch.stack(entropies).mean()
        codes = torch.cat([one.codes for one in found], dim=2)
        return Quantized(codes, torch.stack([one.ids for one in found], dim=1), losses)

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B,Q,N) -> codes (B,N,C)."""
        parts = [quantizer.lookup(row) for quantizer, row in zip(self.codebooks, ids.unbind(1), strict=True)]
        return torch.cat(parts, dim=2)
