"""Hita's GPT with holistic and patch tokens, on golden data of the published code."""

import json
import re

import golden_rule
import pytest
import torch

import vfmtok
from vfmtok.generators.gpt.config import GPT_SIZES
from vfmtok.weights.name_maps import rename


@pytest.fixture(scope="module")
def golden():
    return {name: torch.as_tensor(array) for name, array in golden_rule.load("hita/hita_gpt_tiny.npz").items()
            if array.dtype.kind != "U"}  # fmt: skip


@pytest.fixture(scope="module")
def gpt():
    sizes = {"dim": 64, "n_layer": 3, "n_head": 4, "ffn_hidden": 256, "vocab_size": 96, "num_classes": 10}
    gpt = vfmtok.GPT(vfmtok.gpt_config("GPT-B", num_tokens=16, num_holistic=6, **sizes)).eval()
    weights = golden_rule.weights("hita/hita_gpt_tiny_keys.json", "hita_gpt_tiny.")
    weights["output.weight"] *= 4
    vfmtok.load_released(gpt, weights)
    back = vfmtok.to_released(gpt)
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in weights)
    return gpt


def code(golden) -> torch.Tensor:
    return torch.cat([golden["slots"], golden["ids"]], dim=1)  # (B,K), holistic first


def relative(value, reference) -> float:
    return ((value.detach() - reference).abs().max() / reference.abs().max()).item()


def test_logits_and_losses(gpt, golden):
    ids = code(golden)
    logits = gpt(golden["cls"], ids[:, :-1]).logits
    assert relative(logits[:, :6], golden["slot_logits"]) < 1e-5
    assert relative(logits[:, 6:], golden["patch_logits"]) < 1e-5
    terms = gpt.loss(ids, golden["cls"])
    assert terms["holistic"].item() == pytest.approx(golden["loss_slots"].item(), rel=1e-5)
    assert terms["patch"].item() == pytest.approx(golden["loss_patches"].item(), rel=1e-5)


def test_gradients(gpt, golden):
    gpt.zero_grad()
    sum(gpt.loss(code(golden), golden["cls"]).values()).backward()
    found = {rename(name, gpt.released.pairs): p.grad.norm().item() for name, p in gpt.named_parameters()}
    archive = golden_rule.load("hita/hita_gpt_tiny.npz")
    norms = dict(zip(archive["grad_norm_names"].tolist(), archive["grad_norms"].tolist(), strict=True))
    assert found == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("published", [False, True])
def test_greedy_generation(gpt, golden, published):
    tried = 0
    for key, expected in golden.items():
        match = re.fullmatch(r"greedy_cfg([\d.]+)(?:_interval(\d+))?(_published)?", key)
        if match and bool(match[3]) == published:
            settings = {"cfg_scale": float(match[1]), "cfg_interval": int(match[2] or -1)}
            ids = vfmtok.generate(gpt, golden["cls"], greedy=True, published_boundary=published, **settings)
            assert torch.equal(ids, expected.long()), key
            tried += 1
    assert tried == 3


@pytest.mark.parametrize("given", [0, 3, 6, 7, 15])
@pytest.mark.parametrize("published", [False, True])
def test_cached_decoding(gpt, golden, given, published):
    """Equal to the whole pass at every slot; and with the published boundary to the published cached path."""
    ids = code(golden)
    expected = gpt(golden["cls"], ids[:, :-1]).logits if not published else golden["cached_logits_published"]
    with torch.no_grad():
        cache, logits = gpt.begin(golden["cls"], ids[:, :given], published_boundary=published)
        found = [logits]
        for token in range(given, 21):
            cache.reserve(2 + token)
            found.append(gpt.decode_step(ids[:, token], torch.tensor([token + 1]), cache))
    assert relative(torch.stack(found, 1), expected[:, given:].detach()) < 1e-5


def test_only_the_half_of_the_head_that_is_used_is_computed(gpt, golden, monkeypatch):
    rows = []
    linear = torch.nn.functional.linear

    def counted(x, weight, bias=None):
        rows.append(len(weight))
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    vfmtok.generate(gpt, golden["cls"], cfg_scale=1.0)
    assert 96 in rows and 192 not in [count for count in rows if count != 3 * 64]


def test_sizes():
    sizes = json.loads((golden_rule.GOLDEN / "hita/hita_gpt_sizes.json").read_text())
    for name, facts in sizes.items():
        assert name in GPT_SIZES
        with torch.device("meta"):
            gpt = vfmtok.GPT(vfmtok.gpt_config(name, num_tokens=441, num_holistic=128))
        assert sum(p.numel() for p in gpt.parameters()) == facts["parameters"]


@pytest.mark.slow
def test_full_size():
    golden = golden_rule.load("hita/hita_gpt_b.npz")
    gpt = vfmtok.GPT(vfmtok.gpt_config("GPT-B", num_tokens=441, num_holistic=128)).eval()
    vfmtok.load_released(gpt, golden_rule.weights("hita/hita_gpt_b_keys.json", "hita_gpt_b."))
    ids = torch.cat([torch.as_tensor(golden[name]) for name in ("slots", "ids")], dim=1)
    with torch.no_grad():
        out = gpt(torch.as_tensor(golden["cls"]), ids[:, :-1], targets=ids)
    assert relative(out.logits[:, :128][:, ::16, ::512], torch.as_tensor(golden["slot_logits"])) < 1e-5
    assert relative(out.logits[:, 128:][:, ::32, ::512], torch.as_tensor(golden["patch_logits"])) < 1e-5
    assert out.losses["patch"].item() == pytest.approx(float(golden["loss_patches"]), rel=1e-5)
