"""Usage and perplexity in closed form and against NumPy."""

import numpy as np
import pytest
import torch

from vfmtok.errors import EvaluationError
from vfmtok.metrics.usage import CodeCounter


def usage(ids, size):
    collected = CodeCounter(size)
    collected.update(torch.as_tensor(ids))
    return collected.compute()


def test_closed_forms():
    even = usage(torch.arange(32).repeat(3), 64)
    assert even.usage == 0.5 and even.perplexity == pytest.approx(32) and even.tokens == 96
    one = usage([[5, 5], [5, 5]], 64)
    assert one.usage == 1 / 64 and one.perplexity == pytest.approx(1)
    assert one.histogram.tolist() == [0] * 5 + [4] + [0] * 58


def test_against_numpy_in_any_batches():
    ids = (torch.randn(333, 16, generator=torch.Generator().manual_seed(0)).abs() * 100).long().clamp(max=511)
    counts = np.bincount(ids.flatten().numpy(), minlength=512)
    p = counts[counts > 0] / counts.sum()
    for batch in (1, 7, 64):
        collected = CodeCounter(512)
        for block in ids.split(batch):
            collected.update(block)
        found = collected.compute()
        assert found.histogram.tolist() == counts.tolist()
        assert found.perplexity == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)
        assert found.usage == (counts > 0).mean()


def test_ids_outside_the_codebook():
    with pytest.raises(EvaluationError, match="2 ids lie outside the codebook of 8"):
        usage([0, 8, -1, 7], 8)
    with pytest.raises(EvaluationError, match="no ids"):
        CodeCounter(8).compute()
