"""The Inception score in closed form, against a loop, and against torch-fidelity's."""

import math

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from vfmtok.errors import EvaluationError
from vfmtok.metrics.inception_score import InceptionScore


def score(p, splits=10, batch=None, order=None):
    metric = InceptionScore(len(p), p.shape[1], splits)
    order = torch.arange(len(p)) if order is None else order
    for chosen in order.split(batch or len(p)):
        metric.update(p[chosen], chosen)
    return metric.compute()


def test_closed_forms():
    same = torch.full((50, 8), 1 / 8)
    assert score(same).mean == pytest.approx(1, abs=1e-12) and score(same).std == pytest.approx(0, abs=1e-12)
    certain = torch.eye(8).repeat(10, 1)  # every split sees each class once: as many as there are classes
    assert score(certain).mean == pytest.approx(8, rel=1e-12)
    # One split of two classes, p = (a, 1-a) and (1-a, a): exp(log 2 - H(a)).
    a = 0.9
    entropy = -a * math.log(a) - (1 - a) * math.log(1 - a)
    two = torch.tensor([[a, 1 - a], [1 - a, a]], dtype=torch.float64)
    assert score(two, splits=1).mean == pytest.approx(2 * math.exp(-entropy), rel=1e-12)


@pytest.mark.parametrize("count", [50, 53])
def test_against_a_loop_and_torch_fidelity(count):
    logits = 3 * torch.randn(count, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = logits.softmax(1)
    expected = []
    for s in range(10):
        part = p[s * count // 10 : (s + 1) * count // 10].tolist()
        mean = [math.fsum(row[c] for row in part) / len(part) for c in range(20)]
        expected.append(
            math.exp(math.fsum(q * math.log(q / m) for row in part for q, m in zip(row, mean, strict=True)) / len(part))
        )
    found = score(p)
    assert found.mean == pytest.approx(math.fsum(expected) / 10, rel=1e-9)
    theirs = isc_features_to_metric(logits, splits=10, shuffle=False)
    assert found.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert found.std == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_batches_and_order_of_arrival_change_nothing():
    p = (2 * torch.randn(101, 30, generator=torch.Generator().manual_seed(2))).softmax(1)
    whole = score(p)
    shuffled = torch.randperm(101, generator=torch.Generator().manual_seed(3))
    for batch, order in ((1, None), (7, None), (64, None), (13, shuffled)):
        assert score(p, batch=batch, order=order).mean == pytest.approx(whole.mean, rel=1e-12)


def test_what_gives_no_number():
    p = torch.full((20, 4), 0.25)
    metric = InceptionScore(20, 4)
    metric.update(p[:19], torch.arange(19))
    with pytest.raises(EvaluationError, match="19 samples"):
        metric.compute()
    metric.update(p[:1], torch.tensor([3]))
    with pytest.raises(EvaluationError, match="each of 20 once"):
        metric.compute()
    with pytest.raises(EvaluationError, match="indices"):
        metric.update(p[:1], torch.tensor([20]))
    metric.reset()
    metric.update(p * float("nan"), torch.arange(20))
    with pytest.raises(EvaluationError, match="not finite"):
        metric.compute()
    with pytest.raises(EvaluationError, match="at least as many"):
        InceptionScore(9)
