"""How far the reconstructed encoder features are from the real ones.

Shapes: B batch, N cells, C channels.
"""

import torch.nn.functional as F
from torch import Tensor

from vfmtok.layers.precision import at_least_float32


def feature_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """mean(1 - cos) over cells, features (B,N,C) both -> float32 scalar in [0,2]."""
    cosine = F.cosine_similarity(at_least_float32(reconstruction), at_least_float32(target), dim=-1)  # (B,N)
    return (1 - cosine).mean()
