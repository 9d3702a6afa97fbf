"""Improved precision and recall (Kynkaanniemi et al., 2019), on pool3 features, with k = 3.

A set's manifold is the union of balls around its samples, each reaching to the k-th nearest other sample of the
set. Precision is the share of samples inside the reference's manifold, recall the share of the reference inside
the samples'. Distances are float64; where rounding could decide (duplicates!) they are computed again from the
differences, so the answer is that of a loop over all pairs.

Memory: features as given, and blocks of 16 M distances.

Shapes: N samples, M references, D features, R rows of a block.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vfmtok.errors import EvaluationError
from vfmtok.metrics.frechet import as_float64

NEIGHBOUR = 3
_BLOCK = 1 << 11  # rows and columns of a block, 32 MiB each
_SPARE = 4  # more neighbours than asked for are computed exactly: rounding may have swapped the last ones
_ROUNDING = 64 * torch.finfo(torch.float64).eps  # of |x|^2 + |y|^2, in a distance squared by the product


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


def precision_recall(
    samples: Tensor, reference: Tensor, k: int = NEIGHBOUR, device: torch.device | str | None = None
) -> PrecisionRecall:
    """samples (N,D), reference (M,D) -> shares in [0,1].

    Args:
        device: where distances are computed, block by block; None is where the features are.

    Raises:
        EvaluationError: a set has no k-th neighbour, widths differ, or a feature is not finite.
    """
    if samples.dim() != 2 or reference.dim() != 2 or samples.shape[1] != reference.shape[1]:
        raise EvaluationError(f"features {tuple(samples.shape)} and {tuple(reference.shape)} can't be compared")
    if min(len(samples), len(reference)) <= k:
        raise EvaluationError(
            f"precision and recall with k={k} need more than {k} samples on both sides, got {len(samples)} "
            f"and {len(reference)}"
        )
    if not (samples.isfinite().all() and reference.isfinite().all()):
        raise EvaluationError("some features are not finite")
    device = torch.device(device) if device is not None else samples.device
    device = torch.device("cpu") if device.type == "mps" else device  # it has no float64
    centre = as_float64(reference.mean(dim=0)).to(device)  # distances stay, rounding shrinks
    sample_radii = _squared_radii(samples, k, centre)
    reference_radii = _squared_radii(reference, k, centre)
    sample_inside = torch.zeros(len(samples), dtype=torch.bool, device=device)
    reference_inside = torch.zeros(len(reference), dtype=torch.bool, device=device)
    for rows, x in _blocks(samples, centre):
        for columns, y in _blocks(reference, centre):
            squared, rounding = _squared_distances(x, y)  # (R,R)
            sample_inside[rows] |= _any_inside(squared, rounding, reference_radii[columns], x, y)
            reference_inside[columns] |= _any_inside(squared.t(), rounding.t(), sample_radii[rows], y, x)
    return PrecisionRecall(sample_inside.double().mean().item(), reference_inside.double().mean().item())


def _blocks(features: Tensor, centre: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, their features in float64 on the device of ``centre``)."""
    for start in range(0, len(features), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(features)))
        block = features[rows]
        yield rows, as_float64(block).to(centre.device) - centre


def _squared_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x (R,D), y (S,D) -> |x - y|^2 (R,S) and how far rounding may have moved it."""
    norms = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    return torch.addmm(norms, x, y.t(), alpha=-2), norms * _ROUNDING


def _exact(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 over the last axis, from the differences: 0 for equals, the same both ways round."""
    return (x - y).square().sum(dim=-1)


def _squared_radii(features: Tensor, k: int, centre: Tensor) -> Tensor:
    """(N,D) -> (N,) squared distance to the k-th nearest other; a sample's duplicate is another."""
    wanted = min(k + 1 + _SPARE, len(features))  # itself comes first, or with its duplicates
    radii = []
    for _, x in _blocks(features, centre):
        values = x.new_empty(len(x), 0)
        places = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
        for columns, y in _blocks(features, centre):
            squared = _squared_distances(x, y)[0]
            best, where = squared.topk(min(wanted, len(y)), largest=False)
            values, places = torch.cat([values, best], 1), torch.cat([places, where + columns.start], 1)
            values, order = values.topk(min(wanted, values.shape[1]), largest=False)
            places = places.gather(1, order)
        # Column by column: (R,D) of neighbours at a time.
        exact = [
            _exact(x, as_float64(features[column.to(features.device)]).to(x.device) - centre)
            for column in places.unbind(1)
        ]
        radii.append(torch.stack(exact, dim=1).kthvalue(k + 1, dim=1).values)
    return torch.cat(radii)


def _any_inside(squared: Tensor, rounding: Tensor, radii: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """squared (R,S) from x (R,D) to y (S,D), radii (S,) -> (R,) whether x is in any ball around y."""
    margin = squared - radii
    inside = (margin <= -rounding).any(dim=1)
    unsure = (margin.abs() < rounding) & ~inside[:, None]
    rows, columns = unsure.nonzero(as_tuple=True)
    for r, c in zip(rows.split(_BLOCK), columns.split(_BLOCK), strict=True):  # few, but for sets full of duplicates
        inside[r[_exact(x[r], y[c]) <= radii[c]]] = True
    return inside
