"""What validation counts and what it warns of. The loss itself is in ``test_train_generator.py``, beside a run's."""

import math

import pytest
import tiny_hita
import torch

from vfmtok.training.code_validation import CodeAlarms, baselines, unigram_cross_entropy


def test_unigram_of_ids_never_seen_is_finite():
    assert unigram_cross_entropy(torch.tensor([0, 0]), torch.tensor([1]), 2) == pytest.approx(math.log(4))


def test_segments_are_measured_apart():
    """Held-out numbers of both parts of Hita's row, and what they are compared with; their means are those of all."""
    gpt, generator = tiny_hita.gpt(), torch.Generator().manual_seed(0)
    ids, labels = torch.randint(32, (4, 22), generator=generator), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        values, log_p = gpt.held_out(ids, labels), gpt(labels, ids[:, :-1]).logits.log_softmax(-1)
    losses = -log_p.gather(2, ids[..., None])[..., 0].double()
    for name, part in (("loss_0", losses[:, :6]), ("loss_1", losses[:, 6:]), ("loss", losses)):
        assert torch.allclose(values[name], part.mean(1))
    floors = baselines(ids[:2], ids[2:], gpt.code)
    assert floors["uniform_0"] == floors["uniform_1"] == pytest.approx(math.log(32))
    assert floors["unigram_0"] == pytest.approx(unigram_cross_entropy(ids[:2, :6], ids[2:, :6], 32))
    assert floors["unigram"] == pytest.approx((6 * floors["unigram_0"] + 16 * floors["unigram_1"]) / 22)


def test_alarms():
    alarms = CodeAlarms()
    assert alarms.check(5.0, 4.0, warmed_up=False) == []
    assert "no better than" in alarms.check(4.5, 4.0, warmed_up=True)[0]
    assert alarms.check(4.4, 4.0, warmed_up=True) == []  # told already
    assert alarms.check(3.0, 4.0, warmed_up=True) == []
    (line,) = alarms.check(3.1, 4.0, warmed_up=True)
    assert "over-fits" in line and "0.100 above its best" in line
