"""LlamaGen's GPT at 4, 16 and 576 tokens, on golden data of the published code: it is ours, number for number."""

import re

import golden_rule
import pytest
import torch

import vfmtok


@pytest.fixture(scope="module", params=[4, 16, 576])
def tokens(request):
    return request.param


@pytest.fixture(scope="module")
def golden(tokens):
    return golden_rule.load(f"llamagen/lg_gpt_{tokens}.npz")


@pytest.fixture(scope="module")
def gpt(tokens):
    sizes = {"dim": 64, "n_layer": 3, "n_head": 4, "ffn_hidden": 256, "vocab_size": 96, "num_classes": 10}
    gpt = vfmtok.GPT(vfmtok.gpt_config("GPT-B", num_tokens=tokens, **sizes)).eval()
    weights = golden_rule.weights("llamagen/lg_tiny_keys.json", "lg_tiny.")
    weights["output.weight"] *= 4
    return vfmtok.load_released(gpt, weights)


def relative(value, reference) -> float:
    reference = torch.as_tensor(reference)
    return ((value.detach() - reference).abs().max() / reference.abs().max()).item()


def test_logits_loss_and_gradients(gpt, golden, tokens):
    ids, labels = torch.as_tensor(golden["idx"]).long(), torch.as_tensor(golden["cls"]).long()
    logits = gpt(labels, ids[:, :-1]).logits
    assert relative(logits if tokens < 576 else logits[:, ::23, ::5], golden["logits"]) < 1e-5
    gpt.zero_grad()
    loss = gpt.loss(ids, labels)["token"]
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    loss.backward()
    parameters = {parameter.data_ptr(): parameter for parameter in gpt.parameters()}
    published = vfmtok.to_released(gpt)
    for name, norm in zip(golden["grad_norm_names"].tolist(), golden["grad_norms"].tolist(), strict=True):
        assert parameters[published[name].data_ptr()].grad.norm().item() == pytest.approx(norm, rel=1e-4), name


def test_greedy_generation(gpt, golden):
    labels = torch.as_tensor(golden["labels"]).long()
    tried = 0
    for key, expected in golden.items():
        if match := re.fullmatch(r"greedy_cfg([\d.]+)(?:_interval(\d+))?", key):
            scale, interval = float(match[1]), int(match[2] or -1)
            ids = vfmtok.generate(gpt, labels, cfg_scale=scale, cfg_interval=interval, greedy=True)
            assert torch.equal(ids, torch.as_tensor(expected).long()), key
            tried += 1
    assert tried >= 2
