"""The posterior of a variational autoencoder (Kingma and Welling, 2014): a normal distribution for every latent.

Shapes: B batch, C channels, h and w sides of the map.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vfmtok.config import require_positive
from vfmtok.layers.precision import at_least_float32


@dataclass(frozen=True)
class GaussianConfig:
    """Its size."""

    kind: Literal["gaussian"] = "gaussian"
    channels: int = 32

    def __post_init__(self):
        require_positive(self, "bottleneck", "channels")

    @property
    def input_width(self) -> int:
        """Channels of what it is made from: means and logarithms of variances."""
        return 2 * self.channels


@dataclass
class Posterior:
    """mean and logvar (B,C,h,w), float32; the latter in [-30,20]."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> "Posterior":
        """moments (B,2C,h,w): the means, then the logarithms of the variances, which are clamped."""
        mean, logvar = at_least_float32(moments).chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30, 20))

    @property
    def std(self) -> Tensor:
        """(B,C,h,w)."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """noise (B,C,h,w) of the standard normal distribution -> latents (B,C,h,w)."""
        return self.mean + self.std * noise
