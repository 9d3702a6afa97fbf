"""Norms that several generators share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.layers.precision import at_least_float32


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32, cast back to x's dtype, times a learned weight."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(at_least_float32(x), self.weight.shape, eps=self.eps).to(x.dtype) * self.weight  # as x
