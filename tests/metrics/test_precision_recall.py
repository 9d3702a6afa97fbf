"""Precision and recall against a loop over all pairs."""

import numpy as np
import pytest
import torch

from vfmtok.errors import EvaluationError
from vfmtok.metrics import precision_recall as module
from vfmtok.metrics.precision_recall import precision_recall


def brute_force(samples, reference, k):
    samples, reference = (list(t.double().numpy()) for t in (samples, reference))

    def squared(a, b):
        return float(np.square(a - b).sum())

    def radii(points):
        return [sorted(squared(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    def share(points, others):
        balls = radii(others)
        return np.mean([any(squared(p, q) <= r for q, r in zip(others, balls, strict=True)) for p in points])

    return share(samples, reference), share(reference, samples)


def normal(seed, count, dim, scale=1.0):
    return scale * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1 << 11, 16, 7])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_against_a_loop(k, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    samples, reference = normal(0, 60, 5, 0.8) + 0.8, normal(1, 45, 5)
    found = precision_recall(samples, reference, k)
    assert found == brute_force(samples, reference, k)
    assert 0 < found.precision < 1 and 0 < found.recall < 1


def test_far_from_the_origin_and_ill_conditioned():
    """Squares of 1e8 leave no digit of a distance of 1e-4 to the product formula in float32."""
    axes = torch.logspace(0, -6, 6, dtype=torch.float64)
    samples = normal(2, 50, 6).double() * axes + 1e4
    reference = normal(3, 50, 6).double() * axes + 1e4
    assert precision_recall(samples, reference) == brute_force(samples, reference, 3)


def test_ties_are_those_of_the_loop():
    """Points on a grid, many of them twice: most distances equal a radius exactly."""
    draw = torch.Generator().manual_seed(4)
    samples = torch.randint(0, 4, (70, 3), generator=draw).float() * 0.1 + 7
    reference = torch.randint(0, 5, (60, 3), generator=draw).float() * 0.1 + 7
    found = precision_recall(samples, reference)
    assert found == brute_force(samples, reference, 3)
    repeated = samples[:3].repeat(6, 1)  # radii of 0
    assert precision_recall(repeated, reference) == brute_force(repeated, reference, 3)
    assert precision_recall(repeated, repeated) == (1, 1)


def test_properties():
    x = normal(5, 40, 8)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 1000) == (0, 0)
    narrow = precision_recall(x * 0.05, normal(6, 40, 8))
    assert narrow.precision > narrow.recall
    swapped = precision_recall(normal(6, 40, 8), x * 0.05)
    assert swapped == narrow[::-1]


def test_what_gives_no_number():
    x = normal(7, 10, 4)
    with pytest.raises(EvaluationError, match="more than 3 samples"):
        precision_recall(x[:3], x)
    with pytest.raises(EvaluationError, match="can't be compared"):
        precision_recall(x, x[:, :3])
    with pytest.raises(EvaluationError, match="not finite"):
        precision_recall(x, x / 0)
