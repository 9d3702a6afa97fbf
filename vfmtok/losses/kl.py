"""How far a posterior of latents is from the standard normal distribution.

Shapes: B batch, C channels, h and w sides of the latents.
"""

import torch
from torch import Tensor

from vfmtok.layers.precision import at_least_float32


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean and logarithm of the variance (B,C,h,w) -> KL divergence in nats of an image, the mean over the batch.

    0.5 * sum(mean^2 + variance - 1 - logvar), a float32 scalar.
    """
    with torch.autocast(mean.device.type, enabled=False):
        mean, logvar = at_least_float32(mean), at_least_float32(logvar)
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1).mean()
