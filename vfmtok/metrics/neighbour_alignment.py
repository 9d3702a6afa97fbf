"""CKNNA: how alike the neighbourhoods of images are in the features of two models (Huh et al., 2024; VFM-VAE's tool).

Features are prepared (``prepared``), then each image's k nearest others are found by inner products. Kernels are the
similarities K = A A^T and L = B B^T where both models call an image a neighbour, zero elsewhere; their alignment is
Hilbert and Schmidt's independence criterion (HSIC) of the two over that of each with its own neighbours.

Kernels are n x n with k numbers in a row, so memory is that of features and of blocks of rows. Float64.

Shapes: n images, D features, k neighbours, R rows of a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vfmtok.errors import EvaluationError
from vfmtok.metrics.frechet import as_float64

NEIGHBOURS = 10
CLIPPED = 0.95  # of all absolute values stay as they are
_BLOCK = 1 << 24  # similarities at a time


def prepared(features: Tensor) -> Tensor:
    """(n,D) -> float64 rows of unit length, after a few large values are clamped.

    The bound is the value at 0.95 n D of the sorted absolute values of the whole set.

    Raises:
        EvaluationError: a feature is not finite, or all of an image's are zero.
    """
    features = as_float64(features)
    if features.dim() != 2 or not features.isfinite().all():
        raise EvaluationError(f"features {tuple(features.shape)} of images must be (n,D) and finite")
    flat = features.abs().flatten()
    bound = flat.kthvalue(int(CLIPPED * flat.numel()) + 1).values
    features = features.clamp(-bound, bound)
    lengths = features.norm(dim=1, keepdim=True)
    if not (lengths > 0).all():
        raise EvaluationError("the features of some images are all zero: they have no direction")
    return features / lengths


def check_count(count: int, k: int = NEIGHBOURS) -> None:
    """Raise EvaluationError if so many images are too few."""
    least = max(k + 1, 4)
    if count < least:
        raise EvaluationError(f"alignment with k={k} needs {least} images or more, got {count}")


class Neighbours(NamedTuple):
    """Each row's k most similar rows."""

    columns: Tensor  # (n,k) int64
    similarities: Tensor  # (n,k) float64


def neighbours(features: Tensor, k: int = NEIGHBOURS, with_itself: bool = False) -> Neighbours:
    """Of prepared features (n,D). Raises EvaluationError for fewer than k + 1 images, and at least 4."""
    count = len(features)
    check_count(count, k)
    rows, columns, values = max(1, _BLOCK // count), [], []
    for start in range(0, count, rows):
        block = features[start : start + rows] @ features.t()  # (R,n)
        if not with_itself:
            block.diagonal(start).fill_(-torch.inf)
        found = block.topk(k, dim=1)
        columns.append(found.indices)
        values.append(found.values)
    return Neighbours(torch.cat(columns), torch.cat(values))


def cknna(a: Tensor, b: Tensor, k: int = NEIGHBOURS, biased: bool = False) -> float:
    """Prepared features (n,D) and (n,D') of the same images -> about 0 of unrelated models, 1 of equal ones.

    Args:
        biased: the estimate of HSIC that centres the kernels; an image is then a neighbour of itself.

    Raises:
        EvaluationError: the sets are of different sizes or too small.
    """
    if len(a) != len(b):
        raise EvaluationError(f"features of {len(a)} and {len(b)} images can't be aligned: they must be of the same")
    first, second = neighbours(a, k, with_itself=biased), neighbours(b, k, with_itself=biased)
    return alignment(first, second, biased)


def alignment(first: Neighbours, second: Neighbours, biased: bool = False) -> float:
    """``cknna`` of neighbours that were found before, with ``with_itself`` where it is biased."""
    count = len(first.columns)
    own = [_Kernel.of(found) for found in (first, second)]
    codes = [kernel.rows * count + kernel.columns for kernel in own]
    places = [_places_of(codes[0], codes[1]), _places_of(codes[1], codes[0])]  # of common pairs, in the same order
    common = [_Kernel(*(part[place] for part in kernel)) for kernel, place in zip(own, places, strict=True)]
    hsic = _biased_hsic if biased else _unbiased_hsic
    norm = (hsic(own[0], own[0], count) * hsic(own[1], own[1], count)).clamp(min=0).sqrt()
    return (hsic(common[0], common[1], count) / (norm + 1e-6)).item()


def mutual_neighbours(first: Neighbours, second: Neighbours) -> float:
    """The share of an image's neighbours that are neighbours in the other model, too; the mean over images."""
    both = (first.columns[:, :, None] == second.columns[:, None, :]).any(dim=2)  # (n,k)
    return as_float64(both).mean().item()


def cka(a: Tensor, b: Tensor) -> float:
    """The same of all pairs of images, neighbours or not (unbiased linear CKA): prepared features (n,D) and (n,D').

    With kernels whose diagonals are zero; all of their sums follow from the features, without a matrix of n x n.
    """

    def hsic(x: Tensor, y: Tensor) -> Tensor:
        n, own = len(x), [(part * part).sum(dim=1) for part in (x, y)]  # the diagonals, (n,) both
        rows = [part @ part.sum(dim=0) - diagonal for part, diagonal in zip((x, y), own, strict=True)]
        trace = (x.t() @ y).square().sum() - (own[0] * own[1]).sum()
        total = rows[0].sum() * rows[1].sum() / ((n - 1) * (n - 2))
        return (trace + total - 2 * (rows[0] * rows[1]).sum() / (n - 2)) / (n * (n - 3))

    if len(a) != len(b):
        raise EvaluationError(f"features of {len(a)} and {len(b)} images can't be aligned: they must be of the same")
    check_count(len(a), 1)
    return (hsic(a, b) / (hsic(a, a) * hsic(b, b)).clamp(min=0).sqrt().add(1e-6)).item()


class _Kernel(NamedTuple):
    """A kernel whose other entries are zero, sorted by row and column."""

    rows: Tensor  # (m,) int64
    columns: Tensor  # (m,) int64
    values: Tensor  # (m,) float64

    @staticmethod
    def of(found: Neighbours) -> "_Kernel":
        columns, order = found.columns.sort(dim=1)  # (n,k)
        rows = torch.arange(len(columns), device=columns.device)[:, None].expand_as(columns)
        return _Kernel(rows.flatten(), columns.flatten(), found.similarities.gather(1, order).flatten())

    def sums(self, count: int) -> tuple[Tensor, Tensor]:
        """Of every row and of every column, (n,) both."""
        zeros = self.values.new_zeros(count)
        return zeros.index_add(0, self.rows, self.values), zeros.index_add(0, self.columns, self.values)


def _places_of(codes: Tensor, others: Tensor) -> Tensor:
    """Where in ``codes`` those are that ``others``, sorted too, has as well."""
    places = torch.searchsorted(others, codes).clamp(max=max(len(others) - 1, 0))
    return (others[places] == codes).nonzero().squeeze(1) if len(others) else codes.new_empty(0)


def _transposed_product(p: _Kernel, q: _Kernel, count: int) -> Tensor:
    """sum over i, j of p_ij q_ji: the trace of P Q."""
    mirrored = q.columns * count + q.rows
    order = mirrored.argsort()
    codes, mirrored = p.rows * count + p.columns, mirrored[order]
    here, there = _places_of(codes, mirrored), _places_of(mirrored, codes)
    return (p.values[here] * q.values[order][there]).sum()


def _unbiased_hsic(p: _Kernel, q: _Kernel, n: int) -> Tensor:
    """[tr(PQ) + sum(P) sum(Q) / ((n-1)(n-2)) - 2 sum(PQ) / (n-2)] / (n (n-3)), diagonals being zero."""
    (_, columns), (rows, _) = p.sums(n), q.sums(n)
    total = p.values.sum() * q.values.sum() / ((n - 1) * (n - 2))
    return (_transposed_product(p, q, n) + total - 2 * (columns * rows).sum() / (n - 2)) / (n * (n - 3))


def _biased_hsic(p: _Kernel, q: _Kernel, n: int) -> Tensor:
    """tr(P C Q C) with C = I - 1/n."""
    (p_rows, p_columns), (q_rows, q_columns) = p.sums(n), q.sums(n)
    crossed = ((p_columns * q_rows).sum() + (q_columns * p_rows).sum()) / n
    return _transposed_product(p, q, n) - crossed + p.values.sum() * q.values.sum() / n**2
