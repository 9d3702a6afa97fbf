"""Kernels of the linear layers while sampling: the same samples, a model left as it was, and the choice by time."""

import gc
import time

import pytest
import torch
import torch.nn.functional as F
from tiny_gpt import random_gpt

import vfmtok
from vfmtok.generators import linear_kernels
from vfmtok.generators.linear_kernels import VARIABLE, WAYS, FasterLinears, linear_part, packs

FASTER_WAYS = ["transposed", pytest.param("packed", marks=pytest.mark.skipif(
    not packs(torch.float32), reason="this PyTorch packs no weights here"))]  # fmt: skip


def random_rar():
    torch.manual_seed(0)
    rar = vfmtok.RAR(vfmtok.rar_config("RAR-B", n_layer=2, n_head=4, dim=64, vocab_size=96, num_tokens=16,
                                       num_classes=10)).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in rar.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return rar


MODELS = {"gpt": random_gpt, "hita": lambda: random_gpt(num_holistic=6), "rar": random_rar}


def ways_in_use(model) -> set[str]:
    """By the names of the functions that make the products, without "plain" ones of layers that no step calls."""
    kept = [vars(layer)["forward"].by_piece for layer in model.modules() if "forward" in vars(layer)]
    return {product.__qualname__.split(".")[0].removeprefix("_") for pieces in kept for product in pieces.values()}


def packed_tensors() -> int:
    gc.collect()
    tensors = (found for found in gc.get_objects() if issubclass(type(found), torch.Tensor))
    return sum(found.is_mkldnn for found in tensors)


@pytest.mark.parametrize("way", FASTER_WAYS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_products_equal_an_exact_one(way, bias, rows):
    torch.manual_seed(0)
    weight, offset = torch.randn(48, 80), torch.randn(48) if bias else None
    x = torch.randn(rows, 2, 80)[:, :1]  # (R,1,80), not contiguous
    exact = F.linear(x.double(), weight.double(), offset.double() if bias else None)
    with torch.no_grad():
        found = WAYS[way](weight, offset, rows)(x)
    assert found.shape == exact.shape and found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-6 * exact.abs().max()


@pytest.mark.parametrize("way", FASTER_WAYS)
@pytest.mark.parametrize("kind", MODELS)
def test_samples_are_the_same_and_the_model_is_left_as_it_was(kind, way, monkeypatch):
    """With guidance that ends midway, so that two numbers of rows take their turn, and in Hita both parts of a head."""
    model, seen, step = MODELS[kind](), set(), type(MODELS[kind]()).decode_step
    monkeypatch.setattr(
        type(model), "decode_step", lambda self, *rest: (seen.update(ways_in_use(self)), step(self, *rest))[1]
    )
    settings = {"cfg_scale": 2.0, "cfg_interval": 9, "seed": 5}
    before = [dict(vars(module)) for module in model.modules()]
    expected = vfmtok.generate(model, torch.tensor([1, 7, 3]), **settings)
    assert seen == set()  # small models have nothing to gain
    monkeypatch.setenv(VARIABLE, way)
    assert torch.equal(vfmtok.generate(model, torch.tensor([1, 7, 3]), **settings), expected)
    assert seen == {way}
    assert [dict(vars(module)) for module in model.modules()] == before
    assert packed_tensors() == 0


@pytest.mark.parametrize("way", FASTER_WAYS)
def test_a_run_that_fails_leaves_the_model_as_it_was(way, monkeypatch):
    gpt, step, steps = random_gpt(), vfmtok.GPT.decode_step, []

    def failing(self, *rest):
        steps.append(ways_in_use(self))
        if len(steps) == 5:
            raise RuntimeError("no memory")
        return step(self, *rest)

    monkeypatch.setattr(vfmtok.GPT, "decode_step", failing)
    monkeypatch.setenv(VARIABLE, way)
    with pytest.raises(RuntimeError, match="no memory"):
        vfmtok.generate(gpt, torch.tensor([1]))
    assert steps[-1] == {way}
    assert not any("forward" in vars(layer) for layer in gpt.modules())
    assert packed_tensors() == 0


def test_rows_of_before_are_freed(monkeypatch):
    gpt, rows = random_gpt(), []
    step = vfmtok.GPT.decode_step

    def noting(self, *rest):
        rows.append({piece.rows for piece in vars(self.layers[0].attention.wo)["forward"].by_piece})
        return step(self, *rest)

    monkeypatch.setattr(vfmtok.GPT, "decode_step", noting)
    monkeypatch.setenv(VARIABLE, "transposed")
    vfmtok.generate(gpt, torch.tensor([1, 2, 3]), cfg_scale=2.0, cfg_interval=3)
    assert rows == [set()] + [{6}] * 4 + [{3}] * 10  # one step late each


def slow(make):
    """The same products, each after 20 ms of work."""

    def work() -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    return lambda *tensors: lambda x: (work(), make(*tensors)(x))[1]


@pytest.mark.parametrize("slowest, dtype, fastest", [
    (("plain", "packed"), torch.float32, "transposed"),
    (("packed", "transposed"), torch.float32, "plain"),
    (("plain", "packed", "transposed"), torch.float32, "plain"),  # none is clearly faster
])  # fmt: skip
def test_the_fastest_way_is_taken(slowest, dtype, fastest, monkeypatch):
    for way in slowest:
        monkeypatch.setitem(WAYS, way, slow(WAYS[way]))
    assert choice_of(torch.nn.Linear(64, 32).to(dtype), monkeypatch) == fastest


def test_bfloat16_takes_no_way_that_rounds_otherwise(monkeypatch):
    layer = torch.nn.Linear(64, 32).bfloat16()
    for way in ("plain", "packed"):
        monkeypatch.setitem(WAYS, way, slow(WAYS[way]))
    monkeypatch.setitem(WAYS, "transposed", linear_kernels._plain)
    assert choice_of(layer, monkeypatch) == "transposed"  # the same bits
    monkeypatch.setitem(WAYS, "transposed", lambda *tensors: lambda x: linear_kernels._plain(*tensors)(x) * (1 + 2**-7))
    assert choice_of(layer, monkeypatch) == "plain"


def choice_of(layer, monkeypatch) -> str:
    """What is chosen for it by time."""
    monkeypatch.setattr(linear_kernels, "_choices", {})
    monkeypatch.setattr(linear_kernels, "WORTHWHILE_BYTES", 0)
    x = torch.ones(3, 1, 64, dtype=layer.weight.dtype)
    with torch.no_grad(), FasterLinears(torch.nn.Sequential(layer), 100) as linears:
        layer(x)
        linears.settle()
    ((shape, rows, dtype, way, seconds),) = linear_kernels.chosen()
    assert (shape, rows, dtype) == ((32, 64), 3, layer.weight.dtype) and min(seconds.values()) > 0
    return way


def test_a_part_of_a_layer_is_a_product_of_its_own(monkeypatch):
    monkeypatch.setenv(VARIABLE, "transposed")
    layer, x = torch.nn.Linear(16, 12), torch.randn(2, 16)
    with torch.no_grad():
        whole = layer(x)
        assert torch.equal(linear_part(layer, x, 4, 8), F.linear(x, layer.weight[4:8], layer.bias[4:8]))
        with FasterLinears(torch.nn.Sequential(layer), 100) as linears:
            for _ in range(2):  # plainly, and as chosen
                torch.testing.assert_close(linear_part(layer, x, 4, 8), whole[:, 4:8])
                torch.testing.assert_close(layer(x), whole)
                linears.settle()


def test_layers_that_are_left_alone(monkeypatch):
    """Where autocast computes, what is compiled, shared with another run, or no plain linear layer."""
    monkeypatch.setenv(VARIABLE, "transposed")

    def replaced(model, steps=100):
        with FasterLinears(model, steps):
            return sum("forward" in vars(module) for module in model.modules())

    class Own(torch.nn.Linear):
        pass

    plain = torch.nn.Sequential(torch.nn.Linear(4, 4), Own(4, 4))
    assert replaced(plain) == 1 and replaced(plain, steps=0) == 0
    assert replaced(torch.nn.Linear(4, 4, device="meta")) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert replaced(plain) == 0
    with FasterLinears(plain, 100):
        with FasterLinears(plain, 100):
            pass
        assert "forward" in vars(plain[0])  # the other run still needs it
    monkeypatch.setenv(VARIABLE, "plain")
    assert replaced(plain) == 0


def test_a_way_that_is_none_is_one_line(monkeypatch):
    monkeypatch.setenv(VARIABLE, "pakced")
    with pytest.raises(vfmtok.ConfigError, match=f"{VARIABLE} must be auto, .*packed"):
        vfmtok.generate(random_gpt(), torch.tensor([1]))
