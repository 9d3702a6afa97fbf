"""What validation counts and what it warns of. The loss itself is in ``test_train_generator.py``, beside a run's."""

import math

import pytest
import torch

from vfmtok.training.code_validation import CodeAlarms, unigram_cross_entropy


def test_unigram_of_ids_never_seen_is_finite():
    assert unigram_cross_entropy(torch.tensor([0, 0]), torch.tensor([1]), 2) == pytest.approx(math.log(4))


def test_alarms():
    alarms = CodeAlarms()
    assert alarms.check(5.0, 4.0, warmed_up=False) == []
    assert "no better than" in alarms.check(4.5, 4.0, warmed_up=True)[0]
    assert alarms.check(4.4, 4.0, warmed_up=True) == []  # told already
    assert alarms.check(3.0, 4.0, warmed_up=True) == []
    (line,) = alarms.check(3.1, 4.0, warmed_up=True)
    assert "over-fits" in line and "0.100 above its best" in line
