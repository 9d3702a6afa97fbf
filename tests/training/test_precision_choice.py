"""``run.precision: auto``: by machine at the start, by the checkpoint afterwards."""

import pytest
import torch
from yaml import safe_load

from vfmtok.layers import precision

TINY = ("run.precision=auto", "optimizer.steps=2", "run.save_every=2")


def machine(monkeypatch, *flags: str) -> None:
    monkeypatch.setattr(precision, "_cpu_flags", lambda: set(flags))


def precision_of(folder) -> str:
    return safe_load((folder / "recipe.yaml").read_text())["run"]["precision"]


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16"])
def test_cpus_with_instructions_for_it(monkeypatch, flag):
    machine(monkeypatch, "avx2", flag)
    assert precision.computes_bf16(torch.device("cpu"))


def test_a_run_keeps_the_precision_it_began_with(tiny_recipe, train, monkeypatch):
    machine(monkeypatch, "avx2")
    folder = train(tiny_recipe(*TINY))
    assert precision_of(folder) == "none"
    machine(monkeypatch, "avx2", "amx_bf16")
    assert precision_of(train(tiny_recipe(*TINY, "optimizer.steps=3"))) == "none"
    moved = train(tiny_recipe(*TINY, "optimizer.steps=3", f"run.continue_from={folder}", name="moved"))
    assert precision_of(moved) == "none"
    assert precision_of(train(tiny_recipe(*TINY, name="other"))) == "bf16"


def test_emulated_bf16_is_allowed_and_warned_of(tiny_recipe, train, monkeypatch, capsys):
    machine(monkeypatch, "avx2")
    folder = train(tiny_recipe(*TINY, "run.precision=bf16", "optimizer.steps=1"))
    assert precision_of(folder) == "bf16" and "emulates" in capsys.readouterr().out


def test_slowdown_is_a_ratio():
    assert 0.01 < precision.bf16_slowdown(torch.device("cpu"), 64) < 1e5
