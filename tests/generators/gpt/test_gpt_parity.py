"""The published GPT, on weights and inputs drawn by the rule."""

import golden_rule
import pytest
import torch
from tiny_gpt import published_tiny_gpt

import vfmtok


@pytest.fixture(scope="module")
def golden():
    return golden_rule.load("gpt_tiny.npz")


@pytest.fixture(scope="module")
def gpt():
    return published_tiny_gpt()


def relative(value, reference) -> float:
    reference = torch.as_tensor(reference)
    return ((value.detach() - reference).abs().max() / reference.abs().max()).item()


def test_logits_loss_and_gradients(gpt, golden):
    ids = torch.as_tensor(golden["idx"])
    out = gpt(torch.as_tensor(golden["cls"]), ids[:, :-1], targets=ids)
    assert relative(out.logits, golden["logits"]) < 3e-6
    assert out.loss.item() == pytest.approx(float(golden["loss"]), rel=1e-6)
    gpt.zero_grad()
    out.loss.backward()
    parameters = {p.data_ptr(): p for p in gpt.parameters()}
    published = vfmtok.to_released(gpt)
    assert sorted(golden["grad_norm_names"]) == sorted(published)
    for name, norm in zip(golden["grad_norm_names"], golden["grad_norms"], strict=True):
        gradient = parameters[published[name].data_ptr()].grad
        assert gradient.norm().item() == pytest.approx(float(norm), rel=1e-5), name


@pytest.mark.parametrize("name, scale, interval", [("1.0", 1.0, -1), ("2.5", 2.5, -1), ("2.5_interval4", 2.5, 4)])
def test_greedy_generation(gpt, golden, name, scale, interval):
    labels = torch.as_tensor(golden["cls"])
    ids = vfmtok.generate(gpt, labels, cfg_scale=scale, cfg_interval=interval, greedy=True)
    assert torch.equal(ids, torch.as_tensor(golden[f"greedy_cfg{name}"]).long())


def test_full_size():
    """GPT-B: 110,888,448 parameters under the published names."""
    golden = golden_rule.load("gpt_b.npz")
    gpt = vfmtok.GPT(vfmtok.gpt_config("GPT-B", vocab_size=16384, num_tokens=256, num_classes=1000)).eval()
    published = {name: list(tensor.shape) for name, tensor in vfmtok.to_released(gpt).items()}
    assert published == golden_rule.shapes("gpt_b_keys.json")
    vfmtok.load_released(gpt, golden_rule.weights("gpt_b_keys.json", "gpt_b."))
    ids = torch.as_tensor(golden["idx"])
    with torch.no_grad():
        out = gpt(torch.as_tensor(golden["cls"]), ids[:, :-1], targets=ids)
    assert relative(out.logits[:, ::32, ::512], golden["logits_slice"]) < 1e-5
    assert out.loss.item() == pytest.approx(float(golden["loss"]), rel=1e-6)
