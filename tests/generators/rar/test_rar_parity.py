"""RAR on golden data of the published code."""

import json

import golden_rule
import numpy as np
import pytest
import torch

import vfmtok
from vfmtok.generators.rar.config import RAR_SIZES
from vfmtok.generators.token_sampling import Guidance
from vfmtok.weights.name_maps import rename

TINY = {"dim": 64, "n_layer": 3, "n_head": 4, "ffn_hidden": 192, "vocab_size": 96, "num_tokens": 16, "num_classes": 10}


@pytest.fixture(scope="module")
def golden():
    return golden_rule.load("rar/rar_tiny.npz")


@pytest.fixture(scope="module")
def rar():
    weights = golden_rule.weights("rar/rar_tiny_keys.json", "rar_tiny.")
    weights["lm_head.weight"] *= 4
    rar = vfmtok.load_released(vfmtok.RAR(vfmtok.rar_config("RAR-B", **TINY)), weights).eval()
    back = vfmtok.to_released(rar)
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in weights)
    return rar


def relative(value, reference) -> float:
    reference = torch.as_tensor(reference)
    return ((value.detach() - reference).abs().max() / reference.abs().max()).item()


def long(array) -> torch.Tensor:
    return torch.as_tensor(array).long()


@pytest.mark.parametrize("name", ["raster", "perm_a", "perm_b"])
def test_logits_and_loss(rar, golden, name):
    order = None if name == "raster" else long(golden[name])
    out = rar(long(golden["cls"]), long(golden["idx"]), order, with_loss=True)
    assert relative(out.logits, golden[f"logits_{name}"]) < 1e-5
    assert out.loss.item() == pytest.approx(float(golden[f"loss_{name}"]), rel=1e-5)
    drawn = long(golden["idx"]) if order is None else long(golden["idx"]).gather(1, order)
    assert torch.equal(drawn, long(golden[f"labels_{name}"]))
    hits = (out.logits.argmax(-1) == drawn).float().mean().item()
    assert hits == pytest.approx(float(golden[f"accuracy_{name}"]))


def test_no_class(rar, golden):
    logits = rar(torch.full((3,), rar.null_class), long(golden["idx"])).logits
    assert relative(logits, golden["logits_null_raster"]) < 1e-5


def test_gradients(rar, golden):
    rar.zero_grad()
    rar(long(golden["cls"]), long(golden["idx"]), long(golden["perm_a"]), with_loss=True).loss.backward()
    found = {rename(name, rar.released.pairs): p.grad.norm().item() for name, p in rar.named_parameters()}
    norms = dict(zip(golden["grad_norm_names"].tolist(), golden["grad_norms"].tolist(), strict=True))
    assert found.keys() == norms.keys()
    for name, norm in norms.items():
        small = norm < 1e-5 * max(norms.values())
        assert found[name] == pytest.approx(norm, rel=5e-4, abs=1e-6 if small else 0), name


@pytest.mark.parametrize(
    ("name", "scale", "power"), [("none", 1, 1), ("4_0", 4, 0), ("16_2.75", 16, 2.75), ("6.5_1", 6.5, 1)]
)
def test_greedy_generation(rar, golden, name, scale, power):
    settings = {"cfg_scale": scale, "cfg_schedule": "power-cosine", "cfg_power": power, "greedy": True}
    ids = vfmtok.generate(rar, long(golden["cls"]), **settings)
    assert torch.equal(ids, long(golden[f"greedy_{name}"]))


def test_probabilities_of_every_step(rar, golden, monkeypatch):
    """softmax of the guided logits over the temperature, as the choice of a token sees them."""
    seen = []

    def choose(logits, sampling, draws):
        seen.append((logits / 1.02).softmax(-1))
        return logits.argmax(-1)

    monkeypatch.setattr("vfmtok.generators.autoregressive.choose", choose)
    settings = {"cfg_scale": 6.5, "cfg_schedule": "power-cosine", "cfg_power": 1.0, "greedy": True}
    vfmtok.generate(rar, long(golden["cls"]), **settings)
    assert relative(torch.stack(seen, 1), golden["probs_6.5_1_t1.02"]) < 1e-4


def test_schedules(golden):
    schedules = golden_rule.load("rar/rar_schedules.npz")
    for name in ("16_2.75", "6.5_1", "4_0", "6.9_1.5"):
        scale, power = map(float, name.split("_"))
        guidance = Guidance(scale, -1, "power-cosine", power)
        found = [guidance.scale_at(token, 256) for token in range(256)]
        assert np.allclose(found, schedules[f"cfg_{name}"], rtol=1e-6)
    config = vfmtok.rar_config("RAR-L")
    found = [config.random_share(step) for step in schedules["anneal_steps"].tolist()]
    assert np.allclose(found, schedules["anneal_ratio"], rtol=1e-12)


def test_sizes_and_decay():
    sizes = json.loads((golden_rule.GOLDEN / "rar/rar_sizes.json").read_text())
    for name in RAR_SIZES:
        with torch.device("meta"):
            rar = vfmtok.RAR(vfmtok.rar_config(name))
        assert sum(p.numel() for p in rar.parameters()) == sizes[name]["parameters_16384"]
        if name == "RAR-B":
            decayed = json.loads((golden_rule.GOLDEN / "rar/rar_b_decayed.json").read_text())
            assert {rename(own, rar.released.pairs) for own in rar.decayed()} == set(decayed)
            shapes = {key: list(tensor.shape) for key, tensor in vfmtok.to_released(rar).items()}
            assert shapes == golden_rule.shapes("rar/rar_b_keys.json")


@pytest.mark.slow
def test_full_size():
    golden = golden_rule.load("rar/rar_b.npz")
    rar = vfmtok.RAR(vfmtok.rar_config("RAR-B")).eval()
    vfmtok.load_released(rar, golden_rule.weights("rar/rar_b_keys.json", "rar_b."))
    for name, order in (("raster", None), ("perm_a", long(golden["perm_a"]))):
        with torch.no_grad():
            out = rar(long(golden["cls"]), long(golden["idx"]), order, with_loss=True)
        assert relative(out.logits[:, ::32, ::512], golden[f"logits_slice_{name}"]) < 1e-4
        assert out.loss.item() == pytest.approx(float(golden[f"loss_{name}"]), rel=1e-5)
