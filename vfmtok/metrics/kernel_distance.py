"""Kernel Inception distance (Binkowski et al., 2018): an unbiased estimate, which may be below 0.

MMD^2 with the kernel (x.y/D + 1)^3, over random subsets, whose mean and spread are reported. The draws are those
of torch-fidelity for the same seed (NumPy promises that ``RandomState`` never changes).

Shapes: N samples, M references, n a subset, D features.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vfmtok.errors import EvaluationError
from vfmtok.metrics.frechet import as_float64

SUBSETS, SUBSET_SIZE = 100, 1000


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation (of the population, as published) over subsets, and how they were drawn."""

    mean: float
    std: float
    subsets: int
    subset_size: int
    seed: int


def kernel_distance(
    samples: Tensor, reference: Tensor, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 2020
) -> KernelDistance:
    """samples (N,D), reference (M,D) -> KID, computed in float64 on the samples' device.

    Raises:
        EvaluationError: a set is smaller than a subset, widths differ, or a feature is not finite.
    """
    if samples.dim() != 2 or reference.dim() != 2 or samples.shape[1] != reference.shape[1]:
        raise EvaluationError(f"features {tuple(samples.shape)} and {tuple(reference.shape)} can't be compared")
    if not 2 <= subset_size <= min(len(samples), len(reference)):
        raise EvaluationError(
            f"KID on subsets of {subset_size} needs as many samples on both sides, got {len(samples)} "
            f"and {len(reference)}"
        )
    if not (samples.isfinite().all() and reference.isfinite().all()):
        raise EvaluationError("some features are not finite")
    random = np.random.RandomState(seed)
    distances = []
    for _ in range(subsets):
        x, y = (
            as_float64(features[torch.from_numpy(random.choice(len(features), subset_size, replace=False))])
            for features in (samples, reference)
        )
        distances.append(squared_mmd(x, y.to(x.device)))
    values = torch.stack(distances)
    return KernelDistance(values.mean().item(), values.std(correction=0).item(), subsets, subset_size, seed)


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """x (n,D), y (m,D) -> the unbiased estimate of MMD^2: pairs of a sample with itself are left out."""
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * _kernel(x, y).mean()


def _mean_of_pairs(x: Tensor) -> Tensor:
    kernel = _kernel(x, x)  # (n,n)
    return (kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.t() / x.shape[1] + 1) ** 3
