"""Frechet distance between two sets of features (FID, Heusel et al., 2017; sFID, Nash et al., 2021).

    FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

The last term is the nuclear norm of A^T B for any factors A A^T = S1, B B^T = S2; symmetric eigendecompositions
give the factors, so no square root of a non-symmetric matrix is ever taken. A second factorisation checks it.

Shapes: N samples, D features.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.errors import EvaluationError

_ROWS = 1024  # features held back before they enter the sums
_AGREEMENT = 1e-6  # of tr S1 + tr S2: how far the two ways to the last term may be apart


class RankDeficientWarning(UserWarning):
    """A covariance that the samples do not determine: the distance is biased."""


@dataclass(frozen=True)
class Gaussian:
    """mean (D,) and unbiased covariance (D,D), float64 on the CPU, of ``count`` samples (None: not said)."""

    mean: Tensor
    covariance: Tensor
    count: int | None = None

    def __post_init__(self):
        dim = self.mean.numel()
        if self.mean.shape != (dim,) or self.covariance.shape != (dim, dim):
            raise EvaluationError(
                f"a mean {tuple(self.mean.shape)} does not go with a covariance {tuple(self.covariance.shape)}"
            )
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise EvaluationError("the features' mean or covariance is not finite")
        if (self.covariance - self.covariance.t()).abs().max() > 1e-6 * self.covariance.abs().max():
            raise EvaluationError("a covariance is not symmetric")


class FeatureStatistics:
    """Mean and covariance of features as they come, over all ranks.

    Features enter the sums in blocks of a fixed number of rows, centred on what came before (Chan et al., 1979):
    the batch size changes nothing at all, and a mean far from zero costs no digits. Sums are float64.
    """

    def __init__(self, dim: int):
        self.dim = dim
        self.reset()

    def reset(self) -> None:
        self._held: list[Tensor] = []
        self._held_rows = 0
        self._count = 0
        self._mean: Tensor | None = None  # (D,) of what is in the sums
        self._scatter: Tensor | None = None  # (D,D) sum of (x - mean)(x - mean)^T

    def update(self, features: Tensor) -> None:
        """features (B,D), of any floating dtype and on any device."""
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise EvaluationError(f"expected features (B,{self.dim}), got {tuple(features.shape)}")
        self._held.append(features.detach().clone())  # the caller may reuse its memory
        self._held_rows += len(features)
        if self._held_rows >= _ROWS:
            rows = torch.cat(self._held)
            whole = len(rows) // _ROWS * _ROWS
            for block in rows[:whole].split(_ROWS):
                self._add(block)
            self._held, self._held_rows = [rows[whole:].clone()], len(rows) - whole

    def compute(self) -> Gaussian:
        """Of all features of all ranks; every rank must call it. More may follow.

        Raises:
            EvaluationError: fewer than two samples, or features that are not finite.
        """
        # What is held back joins a copy, so that blocks stay whole if more features follow.
        complete = FeatureStatistics(self.dim)
        complete._count = self._count
        complete._mean, complete._scatter = (t if t is None else t.clone() for t in (self._mean, self._scatter))
        if self._held_rows:
            complete._add(torch.cat(self._held))
        return complete._over_ranks()

    def _add(self, block: Tensor) -> None:
        block = as_float64(block)
        count, mean = len(block), block.mean(dim=0)
        centred = block - mean
        scatter = centred.t() @ centred
        if self._mean is None:
            self._count, self._mean, self._scatter = count, mean, scatter
            return
        shift, total = mean - self._mean, self._count + count
        self._scatter += scatter.addr_(shift, shift, alpha=self._count * count / total)
        self._mean = self._mean + shift * (count / total)
        self._count = total

    def _over_ranks(self) -> Gaussian:
        """Ranks agree on the mean first (D numbers); then one sum of the scatter around it."""
        device = _reducing_device(self._mean)
        mean = torch.zeros(self.dim, dtype=torch.float64) if self._mean is None else self._mean
        count_and_sum = torch.cat([mean.new_tensor([self._count]), self._count * mean]).to(device)
        count_and_sum = distributed.sum_over_ranks(count_and_sum)
        count = round(count_and_sum[0].item())
        if count < 2:
            raise EvaluationError(f"a covariance needs at least 2 samples, got {count}")
        total_mean = count_and_sum[1:] / count
        shift = mean.to(device) - total_mean
        scatter = torch.outer(shift, shift) * self._count
        if self._scatter is not None:
            scatter += self._scatter.to(device)
        scatter = distributed.sum_over_ranks(scatter)
        covariance = (scatter + scatter.t()) / (2 * (count - 1))
        return Gaussian(total_mean.cpu(), covariance.cpu(), count)


def as_float64(tensor: Tensor) -> Tensor:
    """In float64, on its device if that has float64 (MPS has not)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _reducing_device(tensor: Tensor | None) -> torch.device:
    """Ranks reduce where all of them can, also one that saw no features."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.device("cpu")
    return torch.device("cpu") if tensor is None else tensor.device


# --------------------------------------------------------------------------------------
# The distance
# --------------------------------------------------------------------------------------


def frechet_distance(first: Gaussian, second: Gaussian, name: str = "FID") -> float:
    """The Frechet distance (a squared length, as FID is) of a Gaussian from its reference; ``name`` is for messages.

    Warns (RankDeficientWarning) if a covariance has not its full rank, by the samples behind it or by its values.

    Raises:
        EvaluationError: the widths differ, a covariance has negative eigenvalues, or the two ways of computing
            disagree by more than 1e-6 of the traces.
    """
    if first.mean.shape != second.mean.shape:
        raise EvaluationError(f"{name} of features of {len(first.mean)} and {len(second.mean)} dimensions")
    factors = [_factor(first, name, "samples"), _factor(second, name, "samples of the reference")]
    traces = (first.covariance.trace() + second.covariance.trace()).item()
    overlap = torch.linalg.svdvals(factors[0].t() @ factors[1]).sum().item()
    check, rounding = _overlap_again(first, second, factors)
    if not math.isfinite(overlap) or abs(overlap - check) > _AGREEMENT * traces + rounding:
        raise EvaluationError(
            f"two ways of computing {name} disagree: tr sqrt(S1 S2) is {overlap:.9g} or {check:.9g}; "
            "the covariances are too ill-conditioned for a trustworthy number"
        )
    distance = (first.mean - second.mean).square().sum().item() + traces - 2 * overlap
    return max(distance, 0.0)  # of equal Gaussians it may be -1e-12


def _factor(gaussian: Gaussian, name: str, of: str) -> Tensor:
    """(D,r) A with A A^T = covariance, r its rank; what is below the rounding of an eigenvalue is left out."""
    values, vectors = torch.linalg.eigh(gaussian.covariance)
    dim, largest = len(values), values[-1].clamp(min=0)
    rounding = dim * torch.finfo(torch.float64).eps * largest
    if values[0] < -1e-6 * largest - rounding:
        raise EvaluationError(f"{name}: a covariance has the negative eigenvalue {values[0].item():.3g}")
    kept = values > rounding
    rank, count = int(kept.sum()), gaussian.count
    if rank < dim or (count is not None and count <= dim):
        samples = "an unknown number of" if count is None else count
        warnings.warn(
            f"{name}: {samples} {of} give a covariance of rank {rank} for {dim} features: the number is BIASED and "
            "comparable with nothing",
            RankDeficientWarning,
            stacklevel=3,
        )
    return vectors[:, kept] * values[kept].sqrt()


def _overlap_again(first: Gaussian, second: Gaussian, factors: list[Tensor]) -> tuple[float, float]:
    """tr (S1 S2)^(1/2) from Cholesky factors, and how far rounding may have moved it.

    Without full rank there are none: then it is the sum of the square roots of the eigenvalues of A^T S2 A, with A
    of the smaller rank; roots make the rounding of an eigenvalue near 0 as large as its root.
    """
    lower, failed = zip(*(torch.linalg.cholesky_ex(g.covariance) for g in (first, second)), strict=True)
    if all(factor.shape[0] == factor.shape[1] for factor in factors) and not any(info.item() for info in failed):
        return torch.linalg.svdvals(lower[0].t() @ lower[1]).sum().item(), 0.0
    covariance, factor = second.covariance, factors[0]
    if factors[1].shape[1] < factor.shape[1]:
        covariance, factor = first.covariance, factors[1]
    product = factor.t() @ covariance @ factor
    values = torch.linalg.eigvalsh((product + product.t()) / 2).clamp(min=0)
    rounding = torch.finfo(torch.float64).eps * values.amax() if len(values) else values.new_zeros(())
    return values.sqrt().sum().item(), len(values) * rounding.sqrt().item()


def check_same_tap(reference: Gaussian, samples: Gaussian) -> None:
    """Raise EvaluationError if one set of spatial features went through a ReLU and the other did not.

    After a ReLU no mean is negative; of 2023 raw convolution outputs some are. (If none of the raw ones are, the
    difference can't be seen, and nothing is raised.)
    """
    rectified = [bool((g.mean >= 0).all()) for g in (reference, samples)]
    if rectified[0] != rectified[1]:
        said = "after" if rectified[0] else "before"
        tap = "activation" if rectified[0] else "convolution"
        raise EvaluationError(
            f"the reference's spatial features were read {said} the ReLU, the samples' were not: sFID would mean "
            f"nothing; say --spatial-tap {tap}"
        )
