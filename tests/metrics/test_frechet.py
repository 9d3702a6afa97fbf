"""The Frechet distance against 60-digit arithmetic, closed forms and the known bias of a split set."""

import warnings

import mpmath
import numpy as np
import pytest
import torch

from vfmtok.errors import EvaluationError
from vfmtok.metrics import frechet
from vfmtok.metrics.frechet import (
    FeatureStatistics,
    Gaussian,
    RankDeficientWarning,
    check_same_tap,
    frechet_distance,
)


def statistics(features, batch=None):
    collected = FeatureStatistics(features.shape[1])
    for block in features.split(batch or len(features)):
        collected.update(block)
    return collected.compute()


def exact_gaussian(features):
    """Mean and covariance as mpmath matrices, rounded nowhere that matters."""
    rows = [[mpmath.mpf(float(v)) for v in row] for row in features.tolist()]
    n, d = len(rows), len(rows[0])
    mean = [mpmath.fsum(row[j] for row in rows) / n for j in range(d)]
    covariance = mpmath.matrix(d, d)
    for i in range(d):
        for j in range(d):
            covariance[i, j] = mpmath.fsum((r[i] - mean[i]) * (r[j] - mean[j]) for r in rows) / (n - 1)
    return mean, covariance


def exact_distance(x, y):
    """The textbook formula, the root by way of the eigenvalues of S1^(1/2) S2 S1^(1/2)."""
    with mpmath.workdps(60):
        (mean_x, cov_x), (mean_y, cov_y) = exact_gaussian(x), exact_gaussian(y)
        values, vectors = mpmath.eigsy(cov_x)
        root = vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
        product = mpmath.eigsy(root * cov_y * root, eigvals_only=True)
        d = len(mean_x)
        total = mpmath.fsum((a - b) ** 2 for a, b in zip(mean_x, mean_y, strict=True))
        total += mpmath.fsum(cov_x[i, i] + cov_y[i, i] for i in range(d))
        return float(total - 2 * mpmath.fsum(mpmath.sqrt(max(v, 0)) for v in product))


def features(seed, count, dim, condition=1.0, offset=0.0):
    """Correlated normals whose axes shrink to 1/condition, around ``offset``."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.logspace(0, -np.log10(condition), dim, dtype=torch.float64)
    mix = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) * axes @ mix + offset


@pytest.mark.parametrize("condition, offset", [(1, 0), (1e3, 0), (1e6, 0), (1, 1e4), (1e3, 1e3)])
def test_against_60_digits(condition, offset):
    """Axes in a ratio of 1e6 make a covariance of condition 1e12."""
    x, y = features(0, 60, 8, condition, offset), features(1, 90, 8, condition, offset) * 1.01
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(exact_distance(x, y), rel=1e-6)


def test_closed_forms():
    eye = torch.eye(5, dtype=torch.float64)
    a = Gaussian(torch.zeros(5, dtype=torch.float64), 4 * eye)
    b = Gaussian(torch.ones(5, dtype=torch.float64), 9 * eye)
    assert frechet_distance(a, b) == pytest.approx(5 + 5 * (3 - 2) ** 2, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_statistics_stream():
    """Any batch size gives the same bits, and compute in between changes nothing; float64 NumPy gives the same."""
    x = features(2, 2500, 12, 1e4, 50.0).float()
    whole = statistics(x)
    assert whole.count == 2500
    assert np.allclose(whole.mean, x.double().numpy().mean(0), rtol=1e-12)
    assert np.allclose(whole.covariance, np.cov(x.double().numpy().T), rtol=1e-9, atol=1e-18)
    for batch in (1, 7, 64):
        part = statistics(x, batch)
        assert torch.equal(part.mean, whole.mean) and torch.equal(part.covariance, whole.covariance)
    collected = FeatureStatistics(12)
    for block in x.split(700):
        collected.update(block)
        collected.compute() if collected._count + collected._held_rows > 1 else None
    assert torch.equal(collected.compute().covariance, whole.covariance)
    collected.reset()
    collected.update(x[:100])
    assert torch.equal(collected.compute().mean, statistics(x[:100]).mean)


def test_a_mean_far_from_zero_costs_no_digits():
    """Float64 sums of raw squares would lose everything here: (1e7)^2 * 1e-16 is 0.01, the variance 1e-6."""
    x = features(3, 3000, 4) * 1e-3 + 1e7
    exact = np.cov((x - 1e7).numpy().T)
    assert np.allclose(statistics(x, 50).covariance, exact, rtol=1e-5, atol=1e-12)


def test_two_halves_have_the_known_bias():
    """For halves of n samples of N(0, I): E = 2d/n from the means, (d^2 + d)/(2(n - 1)) from the covariances."""
    d, n = 16, 4000
    bias = 2 * d / n + (d * d + d) / (2 * (n - 1))
    found = []
    for seed in range(8):
        x = torch.randn(2 * n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found.append(frechet_distance(statistics(x[:n]), statistics(x[n:])))
    assert np.mean(found) == pytest.approx(bias, rel=0.1)


def test_too_few_samples_are_announced():
    x, y = features(4, 9, 30), features(5, 200, 30)
    with pytest.warns(RankDeficientWarning, match="FID: 9 samples give a covariance of rank 8 for 30 features"):
        found = frechet_distance(statistics(x), statistics(y))
    assert found == pytest.approx(exact_distance(x, y), rel=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(statistics(y), statistics(features(6, 31, 30)))


def test_a_dead_feature_is_announced_too():
    x, y = features(4, 90, 6), features(5, 90, 6)
    x[:, 2] = 1.5
    with pytest.warns(RankDeficientWarning, match="sFID: 90 samples give a covariance of rank 5"):
        found = frechet_distance(statistics(x), statistics(y), "sFID")
    assert found == pytest.approx(exact_distance(x, y), rel=1e-6)


def test_what_gives_no_number():
    x = features(7, 50, 6)
    bad = x.clone()
    bad[17, 3] = float("nan")
    with pytest.raises(EvaluationError, match="not finite"):
        statistics(bad)
    with pytest.raises(EvaluationError, match="at least 2 samples"):
        statistics(x[:1])
    with pytest.raises(EvaluationError, match="6 and 5 dimensions"):
        frechet_distance(statistics(x), statistics(x[:, :5]))
    with pytest.raises(EvaluationError, match="negative eigenvalue"):
        mean = torch.zeros(2, dtype=torch.float64)
        frechet_distance(Gaussian(mean, torch.diag(mean + torch.tensor([1.0, -1.0]))), statistics(x[:, :2]))
    with pytest.raises(EvaluationError, match=r"expected features \(B,6\)"):
        FeatureStatistics(6).update(x[:, :5])


def test_an_asymmetric_matrix_is_no_covariance():
    x = statistics(features(8, 50, 4))
    crooked = x.covariance.clone()
    crooked[0, 3] += 0.3
    with pytest.raises(EvaluationError, match="not symmetric"):
        Gaussian(x.mean, crooked)


@pytest.mark.parametrize("dead", [False, True])
def test_a_wrong_factor_is_found_by_the_second_way(monkeypatch, dead):
    """As if the eigendecomposition had failed in its sixth digit."""
    x, y = features(8, 50, 4), features(9, 50, 4)
    if dead:
        x[:, 1] = 0.0
    right = frechet._factor
    monkeypatch.setattr(frechet, "_factor", lambda *of: right(*of) * (1 + 1e-5))
    with (
        warnings.catch_warnings(),
        pytest.raises(EvaluationError, match="two ways of computing FID disagree"),
    ):
        warnings.simplefilter("ignore", RankDeficientWarning)
        frechet_distance(statistics(x), statistics(y))


def test_taps_are_told_apart():
    raw = statistics(features(10, 50, 20))
    rectified = statistics(features(10, 50, 20).relu())
    with pytest.raises(EvaluationError, match="--spatial-tap activation"):
        check_same_tap(rectified, raw)
    with pytest.raises(EvaluationError, match="--spatial-tap convolution"):
        check_same_tap(raw, rectified)
    check_same_tap(raw, raw)
    check_same_tap(rectified, rectified)
