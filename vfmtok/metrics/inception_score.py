"""Inception score (Salimans et al., 2016): exp of the mean divergence of p(y|x) from p(y), averaged over splits.

The splits are runs of consecutive samples in the order of their indices, unshuffled, as in ADM's evaluation. ADM
cuts every 5,000 samples; at its 50,000 that is the same as 10 equal splits, which is what is meant here at any count.

Shapes: B batch, Y classes.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.errors import EvaluationError
from vfmtok.metrics.frechet import as_float64

SPLITS = 10


@dataclass(frozen=True)
class Score:
    """mean and standard deviation (of the population, as published) over ``splits``."""

    mean: float
    std: float
    splits: int
    count: int


class InceptionScore:
    """The score of samples 0 ... ``num_samples`` - 1, which may come in any order and on any rank.

    Every split needs only the sum of its p and of p log p, kept in float64.

    Raises:
        EvaluationError: fewer samples than splits.
    """

    def __init__(self, num_samples: int, classes: int = 1008, splits: int = SPLITS):
        if num_samples < splits:
            raise EvaluationError(f"an Inception score over {splits} splits needs at least as many samples")
        self.num_samples, self.classes, self.splits = num_samples, classes, splits
        self.reset()

    def reset(self) -> None:
        self._sums = torch.zeros(self.splits, self.classes + 2, dtype=torch.float64)  # p, p log p, count

    def update(self, probabilities: Tensor, indices: Tensor) -> None:
        """probabilities (B,Y), rows that sum to 1; indices (B,) int64, each sample's place among all."""
        p = as_float64(probabilities)  # (B,Y)
        rows = torch.cat([p, torch.xlogy(p, p).sum(dim=1, keepdim=True), torch.ones_like(p[:, :1])], dim=1)
        if ((indices < 0) | (indices >= self.num_samples)).any():
            raise EvaluationError(f"sample indices must lie in 0 ... {self.num_samples - 1}")
        # Split s holds the indices from s*N//S to (s+1)*N//S - 1.
        split = ((indices.cpu() + 1) * self.splits - 1) // self.num_samples
        self._sums.index_add_(0, split, rows.cpu())

    def compute(self) -> Score:
        """The score; every rank must call it.

        Raises:
            EvaluationError: samples are missing, came twice, or are not finite.
        """
        sums = distributed.sum_over_ranks(self._sums.clone())
        p_sum, p_log_p, counts = sums[:, :-2], sums[:, -2], sums[:, -1]
        ends = [s * self.num_samples // self.splits for s in range(self.splits + 1)]
        if counts.tolist() != [float(end - start) for start, end in itertools.pairwise(ends)]:
            raise EvaluationError(
                f"the Inception score saw {int(counts.sum())} samples, not each of {self.num_samples} once"
            )
        if not sums.isfinite().all():
            raise EvaluationError("the probabilities of some samples are not finite")
        mean = p_sum / counts[:, None]  # (S,Y)
        scores = (p_log_p / counts - torch.xlogy(mean, mean).sum(dim=1)).exp()  # (S,)
        return Score(scores.mean().item(), scores.std(correction=0).item(), self.splits, self.num_samples)
