"""Sampling on a GPU: through a cache of fixed length, by CUDA graphs, the ids are those of the growing cache."""

import pytest
import torch
from tiny_gpt import random_gpt

import vfmtok
from vfmtok.generators.cuda_graphs import CUDAGraphs, Replayed, recorder_of

# Graphs that can't be recorded give right ids, too, with a warning: here that is a failure.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("error:sampling goes on without CUDA graphs")]

LABELS = torch.tensor([1, 2, 3])
FAMILIES = {
    "gpt": lambda: random_gpt(num_tokens=64),
    "permuted": lambda: random_gpt(num_tokens=64, permuted=True),
    "holistic": lambda: random_gpt(num_tokens=64, num_holistic=20),
    "rar": lambda: random_rar(),
}


def random_rar() -> vfmtok.RAR:
    torch.manual_seed(0)
    sizes = {"dim": 64, "n_layer": 2, "n_head": 2, "ffn_hidden": 64, "vocab_size": 96, "num_classes": 10}
    rar = vfmtok.RAR(vfmtok.rar_config("RAR-B", num_tokens=64, **sizes)).eval()
    with torch.no_grad():
        for parameter in rar.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return rar


@pytest.mark.parametrize(
    "settings",
    [
        {"cfg_scale": 1.0},
        {"cfg_scale": 2.0, "cfg_interval": 30, "cfg_schedule": "cosine"},
        {"cfg_scale": 2.0, "top_k": 40, "top_p": 0.9},
        {"cfg_scale": 2.0, "greedy": True},
    ],
    ids=lambda settings: ", ".join(settings),
)
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_growing_cache(family, settings, device):
    """In float64, where rounding decides no draw."""
    model, labels = FAMILIES[family]().to(device).double(), LABELS.to(device)
    growing, fixed, again = (
        vfmtok.generate(model, labels, kv_cache=name, **settings) for name in ("growing", "fixed", "fixed")
    )
    assert torch.equal(growing, fixed) and torch.equal(again, fixed)


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_round_as_their_steps_do(family, how, cuda, monkeypatch):
    """The same kernels in the same order: bit for bit what the fixed cache draws without a recorder."""
    model, labels = FAMILIES[family]().to(cuda), LABELS.to(cuda)
    model = model.bfloat16() if how == "bfloat16" else model
    with torch.autocast("cuda", torch.bfloat16, enabled=how == "autocast"):
        replayed = vfmtok.generate(model, labels, kv_cache="fixed")
        monkeypatch.setattr(recorder_of(model), "usable", False)
        assert torch.equal(vfmtok.generate(model, labels, kv_cache="fixed"), replayed)


@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_a_compiled_generator_draws_the_same(cache, cuda):
    gpt, labels = random_gpt().to(cuda), LABELS.to(cuda)
    ids = vfmtok.generate(gpt, labels, cfg_scale=2.0)
    assert torch.equal(vfmtok.generate(gpt, labels, cfg_scale=2.0, kv_cache=cache, compile=True), ids)


def test_memory_is_given_back(cuda):
    """All that recordings held, whatever was recorded: nothing is left after the second call but what the first left,
    such as cuBLAS's workspace."""
    gpt, labels, held = random_gpt(num_tokens=64).to(cuda), LABELS.to(cuda), []
    for _ in range(3):
        vfmtok.generate(gpt, labels, cfg_scale=2.0, cfg_interval=30, kv_cache="fixed")
        torch.cuda.empty_cache()
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[0] == held[1] == held[2]


def test_a_step_that_waits_is_called_instead(cuda):
    """A recording that fails says so once, and the GPU goes on computing."""
    recorder, x = CUDAGraphs(cuda), torch.arange(4.0, device=cuda)
    replayed = Replayed(recorder)

    def waits(y):
        return y * y.sum().item()

    assert torch.equal(replayed("key", waits, x), 6 * x)
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        assert torch.equal(replayed("key", waits, x + 1), 10 * (x + 1))
    assert torch.equal(replayed("key", waits, x), 6 * x)  # no second warning, which would be an error
    assert not recorder.usable
    assert torch.cuda.current_stream(cuda) == torch.cuda.default_stream(cuda)
    gpt = random_gpt(num_tokens=64).to(cuda).double()
    ids = [vfmtok.generate(gpt, LABELS.to(cuda), kv_cache=name) for name in ("growing", "fixed")]
    assert torch.equal(*ids)
