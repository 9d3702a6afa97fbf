"""KID against torch-fidelity's, against a loop, and its freedom from bias."""

import itertools

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from vfmtok.errors import EvaluationError
from vfmtok.metrics.kernel_distance import kernel_distance, squared_mmd


def normal(seed, count, dim, shift=0.0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_against_a_loop():
    x, y = normal(0, 7, 4), normal(1, 9, 4, 0.5)

    def kernel(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    within = [
        np.mean([kernel(a, b) for a, b in itertools.permutations(z, 2)]) for z in (list(x.numpy()), list(y.numpy()))
    ]
    between = np.mean([kernel(a, b) for a in x.numpy() for b in y.numpy()])
    assert squared_mmd(x, y).item() == pytest.approx(sum(within) - 2 * between, rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_against_torch_fidelity(scale):
    """The same subsets for the same seed; nearly collinear features too."""
    x, y = normal(2, 200, 16), normal(3, 150, 16, 0.3)
    x[:, 1:], y[:, 1:] = x[:, :1] + scale * x[:, 1:], y[:, :1] + scale * y[:, 1:]
    theirs = kid_features_to_metric(
        x, y, kid_subsets=20, kid_subset_size=100, rng_seed=7, verbose=False,
        kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1,
    )  # fmt: skip
    found = kernel_distance(x, y, subsets=20, subset_size=100, seed=7)
    assert found.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert found.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)
    assert (found.subsets, found.subset_size, found.seed) == (20, 100, 7)


def test_it_is_unbiased():
    """Over independent sets of one distribution the mean is 0 within its error, at any subset size; a biased
    estimate (pairs of a sample with itself counted) would be many errors above."""
    for size in (5, 40):
        values = torch.stack([squared_mmd(normal(2 * i, size, 3), normal(2 * i + 1, size, 3)) for i in range(600)])
        error = values.std() / 600**0.5
        assert abs(values.mean()) < 3 * error
        biased = 2 * ((3 / 3 + 1) ** 3 - 1) / size  # at least: k(x,x) less k(x,y), roughly, for both sets
        assert biased > 5 * error


def test_what_gives_no_number():
    x = normal(4, 50, 4)
    with pytest.raises(EvaluationError, match="subsets of 1000 needs as many"):
        kernel_distance(x, x)
    with pytest.raises(EvaluationError, match="can't be compared"):
        kernel_distance(x, x[:, :2], subset_size=10)
    with pytest.raises(EvaluationError, match="not finite"):
        kernel_distance(x / 0, x, subset_size=10)
