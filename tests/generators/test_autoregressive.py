"""Generation: the cache is exact, samples are the same however they are asked for."""

import dataclasses

import pytest
import torch
from tiny_gpt import random_gpt, random_inputs
from torch._dynamo.utils import counters

import vfmtok
from vfmtok.generators.kv_cache import BLOCK


@pytest.fixture(scope="module")
def gpt():
    """100 tokens: the reach of the cache grows three times."""
    gpt = random_gpt(num_tokens=100)
    assert gpt.config.num_tokens > 3 * BLOCK
    return gpt


LABELS = torch.arange(16) % 10
SETTINGS = {"cfg_scale": 1.5, "cfg_interval": 40, "top_k": 60, "top_p": 0.95, "temperature": 0.9, "seed": 3}


def cached_logits(gpt, labels, ids, given=0):
    """(B,K-given,V): logits of every token after a prefix of ``given``, fed one at a time."""
    cache, first = gpt.begin(labels, ids[:, :given])
    logits = [first]
    for token in range(given, gpt.config.num_tokens - 1):
        cache.reserve(token + 2)
        logits.append(gpt.decode_step(ids[:, token], torch.tensor([token + 1]), cache))
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("given", [0, 1, 31, 50])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_cached_logits_equal_the_full_pass(given, qk_norm):
    gpt = random_gpt(num_tokens=100, qk_norm=qk_norm)
    labels, ids = random_inputs(gpt, 3)
    with torch.no_grad():
        full = gpt(labels, ids[:, :-1]).logits
        cached = cached_logits(gpt, labels, ids, given)
        gpt.double()
        full_precise, cached_precise = gpt(labels, ids[:, :-1]).logits, cached_logits(gpt, labels, ids, given)
    assert (cached - full[:, given:]).abs().max() < 1e-5 * full.abs().max()
    assert (cached_precise - full_precise[:, given:]).abs().max() < 1e-12  # all else was rounding


def test_cached_logits_in_bfloat16():
    gpt = random_gpt(num_tokens=100)
    labels, ids = random_inputs(gpt, 3)
    with torch.no_grad():
        exact = gpt(labels, ids[:, :-1]).logits
        gpt.bfloat16()
        full, cached = gpt(labels, ids[:, :-1]).logits, cached_logits(gpt, labels, ids)
    assert (full - exact).abs().mean() < 0.03 * exact.abs().mean()
    assert (cached - exact).abs().mean() < 1.2 * (full - exact).abs().mean()  # no worse than bfloat16 itself


def test_a_run_equals_sampling_by_the_full_model(gpt):
    """Guidance, its interval, filters and draws, with a full forward pass for every token and no cache."""
    from vfmtok.generators.counter_random import exponentials
    from vfmtok.generators.token_sampling import Sampling, choose

    labels = LABELS[:2]
    ids = torch.empty(2, 0, dtype=torch.int64)
    for token in range(100):
        with torch.no_grad():
            logits = gpt(labels, ids).logits[:, -1]
            if token < 42:
                unconditional = gpt(torch.full((2,), 10), ids).logits[:, -1]
                logits = unconditional + 1.5 * (logits - unconditional)
        draws = exponentials(3, torch.arange(2), torch.tensor([token]), 96)
        chosen = choose(logits, Sampling(0.9, 60, 0.95), draws)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    assert torch.equal(vfmtok.generate(gpt, labels, **SETTINGS), ids)


def test_the_batch_size_changes_no_sample(gpt):
    whole = vfmtok.generate(gpt, LABELS, **SETTINGS)
    assert whole.shape == (16, 100) and whole.dtype == torch.int64
    assert len({tuple(row) for row in whole.tolist()}) == 16
    for size in (1, 7):
        parts = [
            vfmtok.generate(gpt, LABELS[start : start + size], sample_indices=indices, **SETTINGS)
            for start, indices in zip(range(0, 16, size), torch.arange(16).split(size), strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)
    picked = torch.tensor([11, 2, 5])  # as ranks that take every n-th sample would
    assert torch.equal(vfmtok.generate(gpt, LABELS[picked], sample_indices=picked, **SETTINGS), whole[picked])


def test_seeds_differ_and_repeat(gpt):
    first, again, other = (vfmtok.generate(gpt, LABELS[:2], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first != other).float().mean() > 0.5


def test_global_random_state_is_neither_read_nor_changed(gpt):
    before = torch.get_rng_state()
    vfmtok.generate(gpt, LABELS[:1])
    assert torch.equal(torch.get_rng_state(), before)


def test_guidance_of_1_is_no_guidance(gpt, monkeypatch):
    rows = []
    step = type(gpt).decode_step
    monkeypatch.setattr(
        type(gpt), "decode_step", lambda gpt, ids, *rest: rows.append(len(ids)) or step(gpt, ids, *rest)
    )
    plain = vfmtok.generate(gpt, LABELS[:3], cfg_scale=1.0)
    assert set(rows) == {3}  # no unconditional rows
    labels, indices = LABELS[:3], torch.arange(3)
    assert torch.equal(vfmtok.generate(gpt, labels, cfg_scale=1.0 + 1e-12, sample_indices=indices), plain)
    assert set(rows) == {3, 6}
    rows.clear()
    vfmtok.generate(gpt, LABELS[:3], cfg_interval=4)
    assert rows == [6] * 5 + [3] * 94  # the first of the six guided tokens comes from the prefill


def test_guidance_of_0_is_the_null_class(gpt):
    null = vfmtok.generate(gpt, torch.full((3,), gpt.null_class), cfg_scale=1.0)
    assert torch.equal(vfmtok.generate(gpt, LABELS[:3], cfg_scale=0.0), null)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_change_the_samples(gpt, schedule):
    constant, scheduled = (
        vfmtok.generate(gpt, LABELS[:2], cfg_scale=4.0, cfg_schedule=name) for name in ("constant", schedule)
    )
    assert not torch.equal(constant, scheduled)


@pytest.mark.parametrize("given", [1, 41, 42, 43, 99, 100])
def test_a_prefix_is_kept_and_continued_as_in_the_full_run(gpt, given):
    whole = vfmtok.generate(gpt, LABELS[:4], **SETTINGS)
    assert torch.equal(vfmtok.generate(gpt, LABELS[:4], prefix_ids=whole[:, :given], **SETTINGS), whole)


def test_a_foreign_prefix_is_kept(gpt):
    prefix = torch.full((2, 30), 5)
    ids = vfmtok.generate(gpt, LABELS[:2], prefix_ids=prefix)
    assert torch.equal(ids[:, :30], prefix)
    assert (ids[:, 30:] != vfmtok.generate(gpt, LABELS[:2])[:, 30:]).any()


def test_dropout_is_off_meanwhile_and_the_mode_comes_back(gpt):
    expected = vfmtok.generate(gpt, LABELS[:2])
    gpt.train()
    try:
        assert torch.equal(vfmtok.generate(gpt, LABELS[:2]), expected)
        assert gpt.training
    finally:
        gpt.eval()


def test_bfloat16_and_autocast_run():
    gpt = random_gpt(num_tokens=36)
    with torch.autocast("cpu", torch.bfloat16):
        ids = vfmtok.generate(gpt, LABELS[:2], prefix_ids=torch.zeros(2, 3, dtype=torch.int64))
    exact = vfmtok.generate(gpt, LABELS[:2], prefix_ids=torch.zeros(2, 3, dtype=torch.int64))
    assert ids.shape == exact.shape == (2, 36)
    assert (ids[:, :6] == exact[:, :6]).float().mean() > 0.5  # rounding changes few tokens, but all after them
    assert vfmtok.generate(gpt.bfloat16(), LABELS[:2]).max() < 96


def test_no_images(gpt):
    assert vfmtok.generate(gpt, LABELS[:0]).shape == (0, 100)


def test_compiled_steps_are_one_graph():
    """No break (fullgraph raises on one), no recompilation as the cache grows, the same ids."""
    gpt, labels = random_gpt(num_tokens=100, n_layer=1), LABELS[:3]
    torch._dynamo.reset()
    counters.clear()
    ids = vfmtok.generate(gpt, labels, compile=True, cfg_scale=2.0)
    assert torch.equal(ids, vfmtok.generate(gpt, labels, cfg_scale=2.0))
    assert counters["stats"]["unique_graphs"] == 1
    vfmtok.generate(gpt, labels, compile=True, cfg_scale=2.0, seed=1, greedy=True)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    "labels, settings, message",
    [
        (torch.tensor([11]), {}, r"labels must be in \[0,11\), got 11"),
        (torch.tensor([-1]), {}, r"labels must be in \[0,11\)"),
        (torch.tensor([1]), {"prefix_ids": torch.tensor([[96]])}, r"prefix_ids must be in \[0,96\)"),
        (torch.tensor([1]), {"sample_indices": torch.tensor([-1])}, "sample_indices must be in"),
        (torch.tensor([1]), {"seed": -1}, "seed must be in"),
        (torch.tensor([1]), {"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_values_out_of_range(gpt, labels, settings, message):
    with pytest.raises(vfmtok.ConfigError, match=message):
        vfmtok.generate(gpt, labels, **settings)


@pytest.mark.parametrize(
    "labels, settings",
    [
        (torch.tensor([[1]]), {}),
        (torch.tensor([1.0]), {}),
        (torch.tensor([1]), {"prefix_ids": torch.zeros(2, 3, dtype=torch.int64)}),
        (torch.tensor([1]), {"prefix_ids": torch.zeros(1, 101, dtype=torch.int64)}),
        (torch.tensor([1]), {"sample_indices": torch.arange(2)}),
    ],
)
def test_wrong_shapes(gpt, labels, settings):
    with pytest.raises(ValueError, match="must be"):
        vfmtok.generate(gpt, labels, **settings)


@pytest.mark.parametrize("greedy", [False, True])
def test_logits_that_are_not_finite_are_an_error(greedy):
    gpt = random_gpt()
    with torch.no_grad():
        gpt.output.weight[0, 0] = torch.nan
    with pytest.raises(vfmtok.VFMTokError, match="not finite"):
        vfmtok.generate(gpt, LABELS[:2], greedy=greedy)


def test_a_setting_that_a_family_lacks_is_one_line(gpt):
    """Unless its value changes nothing, as published flags may have it."""
    for settings in ({"top_kk": 3}, {"published_boundary": True}, {"temperature ": 1.0}):
        with pytest.raises(vfmtok.ConfigError, match=next(iter(settings))):
            vfmtok.generate(gpt, LABELS[:1], **settings)

    @dataclasses.dataclass(frozen=True)
    class Plain:
        cfg_scale: float = 1.0

    class Own:
        sampling = Plain

        def sample(self, labels, *, seed, sample_indices, steps=1, **settings):
            return steps, settings

    assert vfmtok.generate(Own(), LABELS, cfg_scale=2.0, top_k=0, steps=7, greedy=False) == (7, {"cfg_scale": 2.0})
    with pytest.raises(vfmtok.ConfigError, match="top_k"):
        vfmtok.generate(Own(), LABELS, top_k=3)


@pytest.mark.parametrize(
    "settings",
    [
        {"cfg_scale": 1.0},
        {"cfg_scale": 2.5},
        {"cfg_scale": 2.5, "cfg_interval": 8},
        {"cfg_scale": 2.5, "cfg_schedule": "linear"},
        {"cfg_scale": 2.0, "published_boundary": True},
    ],
)
def test_with_holistic_tokens(settings):
    """Neither the batch nor where a prefix ends changes a sample, on either side of the boundary at token 6."""
    gpt, labels = random_gpt(num_holistic=6), torch.tensor([0, 7, 2])
    ids = vfmtok.generate(gpt, labels, seed=3, **settings)
    alone = [
        vfmtok.generate(gpt, labels[n : n + 1], seed=3, sample_indices=torch.tensor([n]), **settings) for n in range(3)
    ]
    assert ids.shape == (3, 22) and torch.equal(torch.cat(alone), ids)
    for given in (4, 6, 7, 15):
        assert torch.equal(vfmtok.generate(gpt, labels, seed=3, prefix_ids=ids[:, :given], **settings), ids)
