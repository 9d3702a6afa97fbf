"""RAR: what holds for any weights."""

import pytest
import torch

import vfmtok
from vfmtok.generators.counter_random import Draws
from vfmtok.generators.orders import training_orders

LABELS = torch.tensor([1, 0, 2, 3])


@pytest.fixture(scope="module")
def rar():
    """Random weights everywhere, the modulations' too, so that every part matters."""
    torch.manual_seed(0)
    sizes = {
        "dim": 32,
        "n_layer": 2,
        "n_head": 2,
        "ffn_hidden": 64,
        "vocab_size": 24,
        "num_tokens": 9,
        "num_classes": 4,
    }
    rar = vfmtok.RAR(vfmtok.rar_config("RAR-B", **sizes)).eval()
    with torch.no_grad():
        for parameter in rar.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return rar


@pytest.mark.parametrize("given", [0, 1, 4])
@pytest.mark.parametrize("permuted", [False, True])
def test_cached_decoding_is_the_whole_pass(rar, given, permuted):
    torch.manual_seed(1)
    ids = torch.randint(24, (4, 9))
    order = torch.rand(4, 9).argsort(1) if permuted else torch.arange(9).expand(4, 9)
    drawn = ids.gather(1, order)
    with torch.no_grad():
        whole = rar(LABELS, ids, order).logits  # (B,K,V)
        state, logits = rar.begin(LABELS, drawn[:, :given], order)
        found = [logits]
        for token in range(given, 8):
            state.reserve(3 + token)
            found.append(rar.decode_step(drawn[:, token], torch.tensor([2 + token]), state))
    torch.testing.assert_close(torch.stack(found, 1), whole[:, given:], rtol=1e-5, atol=1e-5)


def test_a_sample_is_the_same_in_any_batch(rar):
    settings = {"cfg_scale": 3.0, "cfg_schedule": "power-cosine", "cfg_power": 1.5, "seed": 7}
    whole = vfmtok.generate(rar, LABELS, **settings)
    parts = [vfmtok.generate(rar, LABELS[i : i + 1], sample_indices=torch.tensor([i]), **settings) for i in range(4)]
    assert torch.equal(torch.cat(parts), whole)
    assert (whole != vfmtok.generate(rar, LABELS, **{**settings, "seed": 8})).any()


def test_the_training_loss_uses_the_order_and_the_null_class(rar):
    torch.manual_seed(3)
    ids, draws = torch.randint(24, (4, 9)), Draws(0, torch.arange(4))
    rar.train()
    try:
        for module in rar.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout_p"):
                module.attention_dropout_p = 0.0
        rar.step = 0
        found = rar.loss(ids, LABELS, draws)["token"]
        order, dropped = training_orders(ids, draws, 1.0), draws.uniform("orders and labels", 2)[:, 1] < 0.1
        labels = torch.where(dropped, rar.null_class, LABELS)
        assert found.item() == pytest.approx(rar(labels, ids, order, with_loss=True).loss.item())
        rar.step = rar.config.anneal_end
        assert rar.loss(ids, LABELS, draws)["token"].item() == pytest.approx(
            rar(labels, ids, with_loss=True).loss.item()
        )
    finally:
        rar.eval()
