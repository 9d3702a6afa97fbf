"""The model: against a slow float64 one, its sizes, its names, its switches."""

import copy
import math

import golden_rule
import pytest
import torch
import torch.nn.functional as F
from tiny_gpt import random_gpt, random_inputs, tiny_config

import vfmtok
from vfmtok.config import config_from_dict, config_to_dict
from vfmtok.generators.gpt.config import GPT_SIZES


def slow_logits(gpt, label: int, ids: list[int]) -> torch.Tensor:
    """One sequence, slot by slot and head by head, in float64, from the equations in DESIGN 6."""
    config, w = gpt.config, {name: tensor.double() for name, tensor in gpt.state_dict().items()}
    width = config.dim // config.n_head

    def rms(x, name):
        return x / (x.square().mean() + 1e-5).sqrt() * w[name]

    def turn(head, slot):
        if slot == 0:
            return torch.zeros_like(head)
        out = head.clone()
        for i in range(width // 2):
            half, pair = divmod(i, width // 4)
            position = divmod(slot - 1, config.side)[half]
            angle = position * config.rope_base ** (-2 * pair / (width / 2))
            a, b = head[2 * i], head[2 * i + 1]
            out[2 * i] = a * math.cos(angle) - b * math.sin(angle)
            out[2 * i + 1] = b * math.cos(angle) + a * math.sin(angle)
        return out

    states = [w["class_embedding.weight"][label], *(w["token_embedding.weight"][i] for i in ids)]
    for layer in (f"layers.{index}." for index in range(config.n_layer)):
        queries, keys, values = [], [], []
        for slot, x in enumerate(states):
            q, k, v = (w[layer + "attention.wqkv.weight"] @ rms(x, layer + "attention_norm.weight")).view(3, -1, width)
            if config.qk_norm:
                q = torch.stack([rms(head, layer + "attention.q_norm.weight") for head in q])
                k = torch.stack([rms(head, layer + "attention.k_norm.weight") for head in k])
            queries.append([turn(head, slot) for head in q])
            keys.append([turn(head, slot) for head in k])
            values.append(v)
        for slot, x in enumerate(states):
            heads = []
            for head in range(config.n_head):
                scores = torch.stack([queries[slot][head] @ keys[s][head] / width**0.5 for s in range(slot + 1)])
                p = scores.softmax(0)
                heads.append(sum(p[s] * values[s][head] for s in range(slot + 1)))
            x = x + w[layer + "attention.wo.weight"] @ torch.cat(heads)
            y = rms(x, layer + "ffn_norm.weight")
            gate = F.silu(w[layer + "feed_forward.w1.weight"] @ y) * (w[layer + "feed_forward.w3.weight"] @ y)
            states[slot] = x + w[layer + "feed_forward.w2.weight"] @ gate
    return torch.stack([w["output.weight"] @ rms(x, "norm.weight") for x in states])


@pytest.mark.parametrize("overrides", [{}, {"qk_norm": True}, {"num_tokens": 9, "n_head": 2, "rope_base": 100.0}])
def test_logits_of_the_slow_model(overrides):
    gpt = random_gpt(n_layer=2, **overrides)
    labels, ids = random_inputs(gpt, 2)
    expected = torch.stack([slow_logits(gpt, labels[b].item(), ids[b, :-1].tolist()) for b in range(2)])
    logits = gpt(labels, ids[:, :-1]).logits
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    precise = copy.deepcopy(gpt).double()(labels, ids[:, :-1]).logits  # the table of angles is float32
    assert (precise - expected).abs().max() < 1e-6 * expected.abs().max()


def test_sizes_have_the_published_parameter_counts():
    published = golden_rule.shapes("gpt_sizes.json")
    assert GPT_SIZES.keys() == published.keys()
    for name, facts in published.items():
        config = vfmtok.gpt_config(name)
        with torch.device("meta"):
            gpt = vfmtok.GPT(config)
        found = {"n_layer": config.n_layer, "n_head": config.n_head, "dim": config.dim, "ffn_hidden": config.hidden}
        assert found | {"params": sum(p.numel() for p in gpt.parameters())} == facts


def test_state_dict_names_are_a_contract():
    layer = [
        "attention_norm.weight",
        "attention.wqkv.weight",
        "attention.wo.weight",
        "ffn_norm.weight",
        "feed_forward.w1.weight",
        "feed_forward.w3.weight",
        "feed_forward.w2.weight",
    ]
    ends = ["class_embedding.weight", "token_embedding.weight", "norm.weight", "output.weight"]
    assert sorted(random_gpt(n_layer=1).state_dict()) == sorted(ends + [f"layers.0.{name}" for name in layer])
    extra = ["layers.0.attention.q_norm.weight", "layers.0.attention.k_norm.weight"]
    named = set(random_gpt(n_layer=1, qk_norm=True).state_dict())
    assert named - set(random_gpt(n_layer=1).state_dict()) == set(extra)


def test_first_weights():
    torch.manual_seed(0)
    gpt = vfmtok.GPT(tiny_config(vocab_size=4096))
    assert not gpt.output.weight.any()
    for name, parameter in gpt.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), name
        elif name != "output.weight":
            n = parameter.numel()
            assert abs(parameter.mean()) < 5 * 0.02 / n**0.5, name
            assert parameter.std().item() == pytest.approx(0.02, rel=5 / (2 * n) ** 0.5), name
    labels, ids = random_inputs(gpt, 2)
    assert gpt.eval()(labels, ids[:, :-1], ids).loss.item() == pytest.approx(math.log(4096), rel=1e-6)


def test_meta_device_then_weights_equals_a_direct_build():
    direct = random_gpt()
    with torch.device("meta"):
        late = vfmtok.GPT(tiny_config()).eval()
    late.to_empty(device="cpu").load_state_dict(direct.state_dict())
    labels, ids = random_inputs(direct, 2)
    assert torch.equal(late(labels, ids[:, :-1]).logits, direct(labels, ids[:, :-1]).logits)


def test_no_slot_sees_a_later_one():
    gpt = random_gpt()
    labels, ids = random_inputs(gpt, 1)
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 96
    before, after = (gpt(labels, x[:, :-1]).logits for x in (ids, changed))
    assert torch.equal(before[:, :8], after[:, :8])  # slot 8 reads token 7
    assert (before[:, 8:] != after[:, 8:]).any(-1).all()


# --------------------------------------------------------------------------------------
# Regularisation
# --------------------------------------------------------------------------------------

OFF = {"dropout_p": 0.0, "token_dropout_p": 0.0, "label_dropout_p": 0.0}


def test_label_dropout_swaps_in_the_null_class():
    gpt = random_gpt(**(OFF | {"label_dropout_p": 0.25})).train()
    ids = random_inputs(gpt, 1)[1].expand(2000, -1)
    with torch.no_grad():
        logits = gpt(torch.full((2000,), 3), ids[:, :0]).logits[:, 0]
        kept, dropped = gpt.eval()(torch.tensor([3, gpt.null_class]), ids[:2, :0]).logits[:, 0]
    is_kept = (logits - kept).abs().amax(-1) < 1e-4
    is_dropped = (logits - dropped).abs().amax(-1) < 1e-4
    assert (is_kept ^ is_dropped).all()
    assert 0.2 < is_dropped.float().mean() < 0.3  # 5 standard deviations


def test_without_dropout_training_equals_evaluation():
    gpt = random_gpt(**OFF)
    labels, ids = random_inputs(gpt, 2)
    assert torch.equal(gpt(labels, ids[:, :-1]).logits, gpt.train()(labels, ids[:, :-1]).logits)


@pytest.mark.parametrize("name", ["dropout_p", "token_dropout_p", "drop_path_rate"])
def test_each_dropout_acts_in_training_only(name):
    gpt = random_gpt(**(OFF | {name: 0.5}))
    labels, ids = random_inputs(gpt, 4)
    plain = gpt(labels, ids[:, :-1]).logits
    assert torch.equal(plain, gpt(labels, ids[:, :-1]).logits)
    gpt.train()
    assert not torch.allclose(plain, gpt(labels, ids[:, :-1]).logits)


def test_drop_path_rises_linearly_and_skips_whole_samples():
    gpt = random_gpt(**(OFF | {"drop_path_rate": 0.4, "n_layer": 5})).train()
    assert [getattr(layer.drop_path, "drop_prob", 0) for layer in gpt.layers] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    layer = gpt.layers[-1]
    layer.feed_forward.w2.weight.data.zero_()  # leaves the attention's branch
    x = torch.randn(1, 16, 64).expand(4000, -1, -1)
    with torch.no_grad():
        change = (layer(x, gpt.rotary[:, :16]) - x).flatten(1)  # (4000,16*64)
        full = (layer.eval()(x[:1], gpt.rotary[:, :16]) - x[:1]).flatten(1)
    skipped = (change == 0).all(1)
    assert 0.35 < skipped.float().mean() < 0.45
    assert torch.allclose(change[~skipped], (full / 0.6).expand_as(change[~skipped]), atol=1e-4)


def test_checkpointed_activations_change_nothing_but_memory():
    gpt = random_gpt(drop_path_rate=0.2)  # with dropout: the recomputation must draw the same
    labels, ids = random_inputs(gpt, 3)
    gradients = []
    for gpt.checkpoint_activations in (False, True):
        torch.manual_seed(5)
        gpt.train().zero_grad()
        gpt(labels, ids[:, :-1], targets=ids).loss.backward()
        gradients.append([p.grad.clone() for p in gpt.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_autocast_keeps_the_loss_in_float32():
    gpt = random_gpt()
    labels, ids = random_inputs(gpt, 2)
    exact = gpt(labels, ids[:, :-1], ids)
    with torch.autocast("cpu", torch.bfloat16):
        out = gpt(labels, ids[:, :-1], ids)
    assert out.logits.dtype == out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=0.01)
    assert (out.logits - exact.logits).abs().max() < 0.05 * exact.logits.abs().max()


def test_bfloat16_weights_keep_float32_angles():
    gpt = random_gpt().bfloat16()
    assert gpt.rotary.dtype == torch.float32
    assert torch.equal(gpt.rotary, random_gpt().rotary)
    labels, ids = random_inputs(gpt, 2)
    assert gpt(labels, ids[:, :-1]).logits.dtype == torch.float32


# --------------------------------------------------------------------------------------
# Configuration
# --------------------------------------------------------------------------------------


def test_config_round_trip(tmp_path):
    config = tiny_config(qk_norm=True, drop_path_rate=0.1)
    assert config_from_dict(config_to_dict(config), vfmtok.GPTConfig) == config
    vfmtok.save_config(config, tmp_path / "gpt.yaml")
    assert vfmtok.load_config(tmp_path / "gpt.yaml", kind=vfmtok.GPTConfig) == config


def test_unknown_names_come_with_the_closest():
    with pytest.raises(vfmtok.ConfigError, match=r"'GPT_XXL' \(closest match: 'GPT-XXL'\)"):
        vfmtok.gpt_config("GPT_XXL")
    with pytest.raises(vfmtok.ConfigError, match="closest match: 'num_classes'"):
        vfmtok.gpt_config("GPT-B", num_class=10)


@pytest.mark.parametrize(
    "override, message",
    [
        ({"num_tokens": 15}, "num_tokens must be a square"),
        ({"n_head": 5}, "dim must be a multiple of 4 times n_head"),
        ({"n_head": 32}, "dim must be a multiple of 4 times n_head"),
        ({"dropout_p": 1.0}, r"dropout_p must be in \[0,1\)"),
        ({"vocab_size": 0}, "vocab_size must be positive"),
        ({"vocab_size": "many"}, "vocab_size must be int"),
        ({"ffn_hidden": -1}, "ffn_hidden must be positive"),
    ],
)
def test_values_that_can_not_be_used(override, message):
    with pytest.raises(vfmtok.ConfigError, match=message):
        tiny_config(**override)


def test_too_many_ids_are_refused():
    gpt = random_gpt()
    labels, ids = random_inputs(gpt, 2)
    with pytest.raises(ValueError, match=r"ids must be \(B,15\) or shorter"):
        gpt(labels, ids)
