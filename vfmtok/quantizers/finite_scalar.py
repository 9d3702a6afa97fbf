"""Finite scalar quantization (Mentzer et al., 2023, arXiv 2309.15505): each dimension is rounded to a few values.

There is no codebook to learn, and so none to collapse: the ids count all combinations of the values. It stands in the
place of the cosine quantizer (``quantizer.kind: fsq``) and keeps its contract, but for the codes, which are vectors in
[-1,1] instead of unit vectors.

Shapes: B batch, K tokens, E code dimensions, V codebook size (the product of ``levels``).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vfmtok.config import require
from vfmtok.layers.precision import at_least_float32
from vfmtok.quantizers.cosine import Quantized

SLACK = 1e-3  # beyond the outermost values, so that tanh reaches them


@dataclass(frozen=True)
class FiniteScalarConfig:
    """How many values each code dimension takes; by default about as many codes as 2^14 (Mentzer et al., table 1)."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 8, 8, 6, 5)
    # See weights/hashing.py; never changed, only added to. Version 0.1 had one configuration for all quantizers.
    PINNED: ClassVar[dict[str, Any]] = {"codebook_size": 16384, "code_dim": 12}

    def __post_init__(self):
        require(min(self.levels, default=0) >= 2, "quantizer.levels", "must be 2 or more each", self.levels)

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    @property
    def code_dim(self) -> int:
        return len(self.levels)

    @classmethod
    def upgraded(cls, tree: dict) -> dict:
        """Version 0.1 asked for what follows from the levels, and wrote the cosine quantizer's weights besides."""
        levels = tree.get("levels")
        size, dim, entropy = (tree.pop(key, None) for key in ("codebook_size", "code_dim", "entropy_weight"))
        if isinstance(levels, list | tuple) and all(isinstance(level, int) for level in levels):
            product = math.prod(levels)
            require(size in (None, product), "quantizer.codebook_size", f"must be {product}", size)
            require(dim in (None, len(levels)), "quantizer.code_dim", f"must be {len(levels)}", dim)
        require(entropy in (None, 0), "quantizer.entropy_weight", "must be 0 with fsq", entropy)
        return {key: value for key, value in tree.items() if key not in ("commit_weight", "entropy_temperature")}


class FiniteScalarQuantizer(nn.Module):
    """Dimension i takes ``config.levels[i]`` values, evenly spaced in [-1,1]; an even number of them leaves out +1.

    The id is the number written by the values' places, the first dimension the fastest. Computed in float32 (float64
    for float64 latents), under autocast too.
    """

    def __init__(self, config: FiniteScalarConfig):
        super().__init__()
        self.config = config
        self.continuous = False  # training may begin without quantization, see training/codebook_care.py
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)  # (E,)
        self.register_buffer("steps", torch.cat([levels.new_ones(1), levels.cumprod(0)[:-1]]), persistent=False)  # (E,)

    def forward(self, latents: Tensor) -> Quantized:
        """latents (B,K,E) -> Quantized. The losses of the contract are 0: nothing pulls at the latents.

        In training with ``continuous`` set, the codes are the bounded latents, not rounded.
        """
        with torch.autocast(latents.device.type, enabled=False):
            z = self.bound(at_least_float32(latents))  # (B,K,E) in units of the values' spacing
            places = z.detach().round()  # (B,K,E): -(L // 2) ... (L - 1) // 2
            ids = ((places.long() + self.levels // 2) * self.steps).sum(dim=-1)  # (B,K)
            codes = places
            if self.training:
                codes = z if self.continuous else z + (places - z).detach()  # straight-through
            zero = z.new_zeros(())
            return Quantized(codes / (self.levels // 2), ids, {"vq": zero, "commit": zero, "entropy": zero})

    def bound(self, latents: Tensor) -> Tensor:
        """(...,E) -> (...,E): squashed by tanh so that rounding gives one of L integers around 0, and 0 stays 0."""
        half = (self.levels - 1) * (1 + SLACK) / 2
        offset = (self.levels % 2 == 0) * 0.5  # an even number of integers does not lie around 0 evenly
        return (latents + (offset / half).atanh()).tanh() * half - offset

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (...) -> codes (...,E) in [-1,1]."""
        half = self.levels // 2
        return (ids[..., None] // self.steps % self.levels - half).float() / half
