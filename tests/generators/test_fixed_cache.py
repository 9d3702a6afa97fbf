"""A cache of fixed length gives the ids of the growing one, also where steps are recorded and replayed."""

import warnings

import pytest
import torch
from recorded_operators import RecordedOperators
from tiny_gpt import random_gpt, random_inputs

import vfmtok
from vfmtok.generators import cuda_graphs
from vfmtok.generators.kv_cache import ALIGNMENT, BLOCK, FixedKVCache, KVCache, cache_class

TOKENS = 49  # the growing cache grows once
LABELS = torch.tensor([1, 0, 2, 3, 1])


def tiny_rar() -> vfmtok.RAR:
    torch.manual_seed(0)
    sizes = {"dim": 32, "n_layer": 2, "n_head": 2, "ffn_hidden": 64, "vocab_size": 96, "num_classes": 4}
    rar = vfmtok.RAR(vfmtok.rar_config("RAR-B", num_tokens=TOKENS, **sizes)).eval()
    with torch.no_grad():
        for parameter in rar.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return rar


FAMILIES = {
    "gpt": lambda: random_gpt(num_tokens=TOKENS),
    "permuted": lambda: random_gpt(num_tokens=TOKENS, permuted=True),
    "holistic": lambda: random_gpt(num_tokens=TOKENS, num_holistic=20),
    "rar": tiny_rar,
}
GUIDANCE = {
    "none": {"cfg_scale": 1.0},
    "all": {"cfg_scale": 2.0},
    "rising, then none": {"cfg_scale": 3.0, "cfg_schedule": "cosine", "cfg_interval": 30},
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return FAMILIES[request.param]()


@pytest.fixture
def recorder(monkeypatch) -> RecordedOperators:
    """This CPU records."""
    found = RecordedOperators()
    monkeypatch.setitem(cuda_graphs.RECORDERS, "cpu", lambda device: found)
    return found


def test_slots_and_masks_stay_in_their_place():
    layers, batch, heads, width = 2, 4, 3, 8
    cache = FixedKVCache(layers, batch, heads, BLOCK + 5, width, torch.empty(0))
    assert cache.layers[0].keys.shape == (batch, heads, BLOCK + ALIGNMENT, width)
    assert not any(tensor.any() for layer in cache.layers for tensor in (layer.keys, layer.values))
    keys, values = torch.randn(2, batch, 3, heads, width)
    cache.layers[1].write(torch.arange(3), keys, values)
    before, phase = cache.layers, cache.phase
    cache.reserve(BLOCK + 5)
    assert cache.layers is before and cache.phase == phase
    part = cache.first(2)
    assert part.layers[1].values.data_ptr() == cache.layers[1].values.data_ptr()
    assert torch.equal(part.layers[1].keys[:, :, :3], keys[:2].transpose(1, 2))
    homes = set()
    for slot in (0, 7, BLOCK + 4):
        mask = cache.mask(torch.tensor([slot]))
        homes.add(mask.data_ptr())
        assert (mask == 0).tolist() == [index <= slot for index in range(BLOCK + ALIGNMENT)]
        assert mask[slot + 1 :].eq(-torch.inf).all()
    assert len(homes) == 1


def test_the_device_decides_unless_it_is_said():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert cache_class("auto", cpu) is KVCache is cache_class("growing", cuda)
    assert cache_class("auto", cuda) is FixedKVCache is cache_class("fixed", cpu)
    with pytest.raises(vfmtok.ConfigError, match="auto, growing or fixed, got 'static'"):
        vfmtok.generate(random_gpt(), LABELS[:1], kv_cache="static")


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_ids_are_those_of_the_growing_cache(model, guidance):
    """In float32, of batches of every size, and in float64, where rounding decides no draw."""
    settings = {**GUIDANCE[guidance], "seed": 3, "top_k": 60, "top_p": 0.95}
    expected = vfmtok.generate(model, LABELS, **settings)
    for size in (5, 2):  # 2, 2 and 1
        parts = [
            vfmtok.generate(model, LABELS[rows], sample_indices=rows, kv_cache="fixed", **settings)
            for rows in torch.arange(5).split(size)
        ]
        assert torch.equal(torch.cat(parts), expected), size
    try:
        model.double()
        precise = [vfmtok.generate(model, LABELS, kv_cache=name, **settings) for name in ("growing", "fixed")]
    finally:
        model.float()
    assert torch.equal(*precise)


@pytest.mark.parametrize("given", [1, 19, 20, 21, 45])
def test_a_prefix_is_continued(model, given):
    settings = {"cfg_scale": 2.0, "cfg_interval": 40, "seed": 3}
    expected = vfmtok.generate(model, LABELS[:2], **settings)
    prefix = expected[:, :given]
    assert torch.equal(vfmtok.generate(model, LABELS[:2], prefix_ids=prefix, kv_cache="fixed", **settings), expected)


@pytest.mark.parametrize("family", ["permuted", "rar"])
def test_orders_and_given_tokens(family, recorder):
    """Another order and another number of known tokens in every row."""
    model = FAMILIES[family]()
    torch.manual_seed(1)
    order = torch.rand(5, TOKENS).argsort(1)
    known = torch.randint(96, (5, TOKENS)), torch.rand(5, TOKENS) < torch.linspace(0.1, 0.8, 5)[:, None]
    for given in ({"order": order}, {"known": known}):
        expected = vfmtok.generate(model, LABELS, cfg_scale=2.0, **given)
        assert torch.equal(vfmtok.generate(model, LABELS, cfg_scale=2.0, kv_cache="fixed", **given), expected)
    assert recorder.run


def logits_of(model, cache, labels, ids):
    """(B,K,V): logits of every token, fed one at a time."""
    state, first = model.begin(labels, ids[:, :0], None, cache=cache)
    logits = [first]
    for token in range(TOKENS - 1):
        slot = model.first_token_slot + token
        state.reserve(slot + 1)
        logits.append(model.decode_step(ids[:, token], torch.tensor([slot]), state))
    return torch.stack(logits, dim=1)


def test_logits_differ_by_rounding_alone(model):
    """By no more than either differs from float64, where they are the same to 1e-13."""
    labels, ids = LABELS[:3], torch.randint(96, (3, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        growing, fixed = (logits_of(model, cache, labels, ids) for cache in (KVCache, FixedKVCache))
        try:
            model.double()
            precise, fixed_precise = (logits_of(model, cache, labels, ids) for cache in (KVCache, FixedKVCache))
        finally:
            model.float()
    size = precise.abs().max()
    assert (fixed_precise - precise).abs().max() < 1e-13 * size
    assert (fixed - growing).abs().max() < 1e-6 * size
    assert (fixed - precise).abs().max() < 2 * (growing - precise).abs().max() + 1e-7 * size


def test_bfloat16_is_as_near():
    gpt = random_gpt(num_tokens=TOKENS)
    labels, ids = random_inputs(gpt, 3)
    with torch.no_grad():
        exact = logits_of(gpt, KVCache, labels, ids)
        gpt.bfloat16()
        growing, fixed = (logits_of(gpt, cache, labels, ids) for cache in (KVCache, FixedKVCache))
    assert (fixed - exact).abs().mean() < 1.1 * (growing - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_replayed_steps_draw_the_same(model, guidance, recorder):
    """Whatever the host decides in a step is in its phase: nothing else could come out right of a recording."""
    settings = {**GUIDANCE[guidance], "seed": 3, "top_k": 60, "top_p": 0.95}
    expected = vfmtok.generate(model, LABELS, **settings)
    assert not recorder.warmed_up  # the growing cache is not recorded
    assert torch.equal(vfmtok.generate(model, LABELS, kv_cache="fixed", **settings), expected)
    numbers_of_rows = 2 if "cfg_interval" in settings else 1
    sides = 2 if getattr(model.config, "num_holistic", 0) else 1  # of the boundary; the one step across is not recorded
    assert recorder.recorded == 1 + numbers_of_rows + sides - 1
    assert recorder.warmed_up == recorder.recorded + sides - 1
    assert recorder.run + recorder.warmed_up == 2 * model.code.num_tokens - 1  # draws, and steps after the first pass


def test_replayed_under_autocast(recorder):
    gpt = random_gpt(num_tokens=TOKENS)
    with torch.autocast("cpu", torch.bfloat16):
        expected = vfmtok.generate(gpt, LABELS)
        recorder.usable = False
        eager = vfmtok.generate(gpt, LABELS, kv_cache="fixed")
        recorder.usable = True
        assert torch.equal(vfmtok.generate(gpt, LABELS, kv_cache="fixed"), eager)
    assert recorder.run and (eager == expected).float().mean() > 0.3  # rounding changes few tokens, but all after them


def test_a_failed_recording_is_one_line_and_no_more(model, recorder, monkeypatch):
    """A step that reads a value, which works but cannot be recorded."""
    step = type(model).decode_step

    def reads_a_value(self, ids, slot, state):
        assert slot.item() >= model.first_token_slot
        return step(self, ids, slot, state)

    expected = vfmtok.generate(model, LABELS, cfg_scale=2.0)
    monkeypatch.setattr(type(model), "decode_step", reads_a_value)
    with pytest.warns(UserWarning) as caught:
        found = vfmtok.generate(model, LABELS, cfg_scale=2.0, kv_cache="fixed")
    (warning,) = caught
    said = "sampling goes on without CUDA graphs, and slower: operation not permitted when stream is capturing"
    assert str(warning.message) == said
    assert torch.equal(found, expected)
    recorded = recorder.recorded
    with warnings.catch_warnings(action="error"):
        assert torch.equal(vfmtok.generate(model, LABELS, cfg_scale=2.0, kv_cache="fixed"), expected)
    assert recorder.recorded == recorded


@pytest.mark.slow
def test_compiled_steps_through_a_fixed_cache():
    gpt = random_gpt(num_tokens=TOKENS, n_layer=1)
    torch._dynamo.reset()
    expected = vfmtok.generate(gpt, LABELS[:3], cfg_scale=2.0)
    assert torch.equal(vfmtok.generate(gpt, LABELS[:3], cfg_scale=2.0, kv_cache="fixed", compile=True), expected)
