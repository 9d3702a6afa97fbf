"""From logits to tokens: filters exact, draws of the right distribution."""

import golden_rule
import pytest
import torch

import vfmtok
from vfmtok.generators.counter_random import exponentials
from vfmtok.generators.token_sampling import Guidance, Sampling, choose, filter_logits, guide


@pytest.mark.parametrize("name, top_k, top_p", [("topk5", 5, 1.0), ("topp8", 0, 0.8), ("k10p6", 10, 0.6)])
def test_published_filters(name, top_k, top_p):
    golden = golden_rule.load("gpt_tiny.npz")
    filtered = filter_logits(torch.as_tensor(golden["filter_in"]), top_k, top_p)
    assert torch.equal(filtered, torch.as_tensor(golden[f"filter_{name}"]))


def test_ties_and_ends():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    kept = lambda *arguments: filter_logits(logits, *arguments).isfinite()[0].tolist()  # noqa: E731
    assert kept(2, 1.0) == [True, True, True, True, False]  # all that equal the second
    assert kept(1, 1.0) == [True, False, False, False, False]
    assert kept(99, 1.0) == [True] * 5
    assert kept(0, 1e-9) == [True, False, False, False, False]  # the first always stays
    p = logits.softmax(-1)[0]
    assert kept(0, p[0].item()) == [True, True, False, False, False]  # not above p yet: one more


def expected_distribution(logits, sampling):
    """Token by token, in float64."""
    p = (logits.double() / sampling.temperature).softmax(-1)
    order = p.argsort(descending=True).tolist()
    if sampling.top_k:
        smallest = p[order[sampling.top_k - 1]]
        p = torch.where(p >= smallest, p, 0)
        p = p / p.sum()
    if sampling.top_p < 1:
        kept, total = [], 0.0
        for token in order:
            if total <= sampling.top_p:
                kept.append(token)
            total += p[token].item()
        p = torch.where(torch.isin(torch.arange(len(p)), torch.tensor(kept)), p, 0)
    return p / p.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(temperature=2.0, top_k=7),
        Sampling(top_p=0.7),
        Sampling(temperature=1.5, top_k=20, top_p=0.8),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(sampling):
    n = 200_000
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2)) * 1.5
    draws = exponentials(11, torch.arange(n), torch.tensor([5]), 40)
    counts = torch.bincount(choose(logits.expand(n, -1), sampling, draws), minlength=40).double()
    p = expected_distribution(logits, sampling)
    assert (counts[p == 0] == 0).all()
    expected = n * p[p > 0]
    chi_square = ((counts[p > 0] - expected) ** 2 / expected).sum().item()
    freedom = len(expected) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_impossible_tokens_are_never_drawn():
    """Even with the most extreme numbers that the generator can give."""
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert choose(logits, Sampling(), torch.tensor([[2.0**-33, 16.7, 2.0**-33]])).tolist() == [1]


def test_greedy_is_the_first_of_the_largest_and_ignores_the_rest():
    logits = torch.tensor([[0.0, 3.0, 3.0], [1.0, 0.0, -1.0]])
    sampling = Sampling(temperature=0.0, top_k=-1, top_p=9.0, greedy=True)
    assert choose(logits, sampling, None).tolist() == [1, 0]


@pytest.mark.parametrize("greedy", [False, True])
def test_nan_gives_no_token(greedy):
    logits = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 0.0, 9.0]])
    assert choose(logits, Sampling(greedy=greedy), torch.ones(2, 3)).tolist() == [3, 2]


def test_guidance_equation():
    conditional, unconditional = torch.randn(2, 5), torch.randn(2, 5)
    both = torch.cat([conditional, unconditional])
    assert torch.allclose(guide(both, 2.5), 2.5 * conditional - 1.5 * unconditional, atol=1e-6)


def test_guidance_schedules():
    scales = {
        schedule: [Guidance(3.0, -1, schedule).scale_at(token, 4) for token in range(4)]
        for schedule in ("constant", "linear", "cosine")
    }
    assert scales["constant"] == [3.0] * 4
    assert scales["linear"] == [1.5, 2.0, 2.5, 3.0]
    half = 0.5**0.5
    assert scales["cosine"] == pytest.approx([2 - half, 2.0, 2 + half, 3.0])


def test_guided_tokens():
    assert Guidance(1.0).guided_tokens(16) == 0
    assert Guidance(1.5).guided_tokens(16) == 16
    assert Guidance(1.5, 0).guided_tokens(16) == 2  # the first and one more
    assert Guidance(1.5, 4).guided_tokens(16) == 6
    assert Guidance(1.5, 99).guided_tokens(16) == 16


@pytest.mark.parametrize(
    "kind, settings, key",
    [
        (Sampling, {"temperature": 0.0}, "temperature"),
        (Sampling, {"temperature": float("nan")}, "temperature"),
        (Sampling, {"top_k": -1}, "top_k"),
        (Sampling, {"top_p": 0.0}, "top_p"),
        (Sampling, {"top_p": 1.1}, "top_p"),
        (Guidance, {"scale": -1.0}, "cfg_scale"),
        (Guidance, {"scale": float("inf")}, "cfg_scale"),
        (Guidance, {"interval": -2}, "cfg_interval"),
        (Guidance, {"schedule": "square"}, "cfg_schedule"),
    ],
)
def test_settings_out_of_range(kind, settings, key):
    with pytest.raises(vfmtok.ConfigError, match=f"^{key} must be"):
        kind(**settings)
