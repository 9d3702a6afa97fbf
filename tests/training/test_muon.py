"""Muon with AdamW: which parameters it takes, its steps beside the equations, runs that are cut, shared, resumed."""

import math
import re
from functools import partial

import pytest
import ranks
import torch
from small_caches import recipe_file, small_recipe
from torch import nn
from training_runs import assert_same, final, logged

import vfmtok
from vfmtok import distributed
from vfmtok.errors import ConfigError
from vfmtok.training import muon
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.muon import hidden_matrices
from vfmtok.training.optimizer import Stepper, build_optimizer, moments
from vfmtok.training.recipe import OptimizerConfig
from vfmtok.training.train_generator import train_generator
from vfmtok.training.train_tokenizer import train_tokenizer

ALONE = distributed.World(0, 1, torch.device("cpu"))
CPU = torch.device("cpu")
LEARNING = {"name": "muon", "lr": 1e-2, "decay": "linear"}


def gpt():
    return vfmtok.build_generator(vfmtok.gpt_config("GPT-B", n_layer=2, dim=32, n_head=2, vocab_size=64))


def dit():
    return vfmtok.build_generator(vfmtok.dit_config("LightningDiT-B/1", depth=2, width=48, heads=2))


def tiny_vfmtok():
    return vfmtok.build_tokenizer(vfmtok.load_config("configs/tiny.yaml"))


@pytest.mark.parametrize(
    "build, wanted",
    [
        (gpt, r"layers\.\d\.(attention\.(wqkv|wo)|feed_forward\.w\d+)\.weight"),
        (dit, r"blocks\.\d\.(attention\.(qkv|proj)|mlp\.w\d+|modulation)\.weight"),
        (
            tiny_vfmtok,
            r"sampler\.layers\.\d\.(cross_attention\.(sampling_offsets|attention_weights|value_proj|output_proj)"
            r"|self_attention\.(q|k|v|out)_proj|mlp\.\d)\.weight"
            r"|decoder\.layers\.\d\.(attention\.(q|k|v|out)_proj|mlp\.w\d+)\.weight",
        ),
    ],
)
def test_matrices_are_those_of_the_layers(build, wanted, root, monkeypatch):
    """Not embeddings, heads, input projections, position tables, codebooks, convolutions, norms and biases."""
    monkeypatch.chdir(root)
    model = build()
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [names[parameter] for parameter in hidden_matrices(model) if parameter.requires_grad]
    assert len(found) == len(set(found)) and found
    assert set(found) == {name for name in names.values() if re.fullmatch(wanted, name)}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Linear(5, 6)
        self.layers = nn.ModuleList(nn.ModuleDict({"wide": nn.Linear(6, 9), "tall": nn.Linear(9, 6)}) for _ in range(2))


def stepper_of(model: nn.Module, scaled: bool = False, **settings) -> Stepper:
    config = OptimizerConfig(name="muon", weight_decay=0.1, muon_lr_factor=3.0, **settings)
    optimizer = build_optimizer(config, [{"params": list(model.parameters())}], hidden_matrices(model))
    return Stepper(optimizer, model.parameters(), 1.0, scaled)


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def orthogonal(matrix):
    """By the singular values: each goes through the quintic s -> a s + b s^3 + c s^5 five times, from s / |matrix|."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ vh


def test_steps_match_the_equations():
    """Clipping by the norm over all; matrices by singular values, to bfloat16; the rest as AdamW alone, bit for bit."""
    model, other = Small(), Small()
    stepper = stepper_of(model)
    rest = [p for p in other.parameters() if not any(p is matrix for matrix in hidden_matrices(other))]
    alone = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    weights = [p.detach().double() for p in hidden_matrices(model)]
    momenta = [torch.zeros_like(w) for w in weights]
    for step in range(1, 4):
        gradients(model, step)
        gradients(other, step)
        lr = 0.01 * step
        norm = nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        clipped = [p.grad.double() for p in hidden_matrices(other)]
        assert torch.equal(stepper.step(lr), norm)
        alone.param_groups[0]["lr"] = lr
        alone.step()
        for i, gradient in enumerate(clipped):
            momenta[i] = 0.95 * momenta[i] + 0.05 * gradient
            update = orthogonal(0.05 * gradient + 0.95 * momenta[i])
            size = 0.2 * math.sqrt(max(gradient.shape))
            moved = weights[i] * (1 - 3 * lr * 0.1) - 3 * lr * size * update
            found = hidden_matrices(model)[i].detach().double()
            assert (found - moved).norm() < 0.04 * (moved - weights[i]).norm()
            weights[i] = found  # or roundings would add up
    named = dict(model.named_parameters())
    assert all(torch.equal(named[n], p) for n, p in other.named_parameters() if any(p is q for q in rest))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_steps_are_those_of_pytorchs_muon(monkeypatch):
    """In bfloat16, which that always takes."""
    monkeypatch.setattr(muon, "_working_dtype", lambda device: torch.bfloat16)
    ours, theirs = Small(), Small()
    rates = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    steppers = [
        muon.Muon([{"params": hidden_matrices(ours)}], **rates),
        torch.optim.Muon(hidden_matrices(theirs), adjust_lr_fn="match_rms_adamw", **rates),
    ]
    for step in range(4):
        for model, stepper in zip((ours, theirs), steppers, strict=True):
            gradients(model, step)
            stepper.step()
    for mine, other, first in zip(
        hidden_matrices(ours), hidden_matrices(theirs), hidden_matrices(Small()), strict=True
    ):
        assert (mine - other).norm() < 0.02 * (other - first).norm()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (32, 32)])
def test_iterations_match_singular_values(shape):
    """In float32, of a CPU that only emulates bfloat16."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = muon.orthogonalised(matrix, torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), orthogonal(matrix), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("native, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_the_precision_is_the_devices(monkeypatch, native, dtype):
    monkeypatch.setattr(muon, "computes_bf16", lambda device: native)
    monkeypatch.setattr(muon, "_working_dtype", muon._working_dtype.__wrapped__)
    assert muon._working_dtype(CPU) == dtype
    assert ("bfloat16" if native else "float32") in stepper_of(Small()).optimizer.describe(CPU)[0]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("before", [0, 2])
def test_a_gradient_that_is_not_finite_changes_nothing(scaled, before):
    """Neither weights nor moments, from the first step on; later steps are those of a run that never saw it."""
    model, spared = Small(), Small()
    steppers = [stepper_of(m, scaled) for m in (model, spared)]
    for stepper in steppers:  # the scale, which backward() would have multiplied by, is 1
        stepper.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, enabled=scaled)
        stepper.scaler.scale(torch.ones(()))
    for step in range(before):
        for m, stepper in zip((model, spared), steppers, strict=True):
            gradients(m, step)
            stepper.step(0.01)
    gradients(model, 7)
    model.layers[1]["wide"].weight.grad[0, 0] = float("nan")
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not torch.isfinite(steppers[0].step(0.01))
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    for m, stepper in zip((model, spared), steppers, strict=True):
        stepper.scaler.update(1.0) if scaled else None
        gradients(m, 8)
        stepper.step(0.01)
    assert_equal(model.state_dict(), spared.state_dict())
    saved = [
        moments(s.optimizer, {p: n for n, p in m.named_parameters()})
        for m, s in zip((model, spared), steppers, strict=True)
    ]
    assert_equal(*saved)
    kinds = {name.partition("/")[0] for name in saved[0]}
    assert kinds == {"momentum_buffer", "step", "exp_avg", "exp_avg_sq"}


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def continued(build, train, folder) -> None:
    """A run, and one that continues from its checkpoint of step 8: the same at step 12, bit for bit."""
    train(build(name="whole"), ALONE)
    train(build(name="cut", continue_from=str(folder / "whole/checkpoints/step_0000008")), ALONE)
    assert_same(final(folder / "whole"), final(folder / "cut"))
    assert any(name.startswith("momentum_buffer/") for name in final(folder / "cut").parts["model_optimizer"])


def test_a_generator_continues_exactly(caches):
    def build(name, **run):
        return small_recipe(caches, name, gpt={"dropout_p": 0.1}, optimizer=LEARNING, run=run)

    continued(build, train_generator, caches)
    losses = logged(caches / "whole", "loss/token")
    assert losses[12] < losses[1] - 0.2


def test_a_tokenizer_continues_exactly(tiny_recipe, tmp_path):
    def build(name, **run):
        settings = [f"optimizer.{key}={value}" for key, value in LEARNING.items()]
        care = ["codebook.continuous_steps=4", "codebook.kmeans=true", "codebook.revive=true", "codebook.window=150"]
        return tiny_recipe(*settings, *care, *(f"run.{key}={value}" for key, value in run.items()), name=name)

    continued(build, train_tokenizer, tmp_path)


@pytest.mark.parametrize("turn", [("adamw", "muon"), ("muon", "adamw")])
def test_a_run_may_change_its_optimizer(caches, turn, capsys):
    """The moments that the other one lacks start at zero, and it is said; those of AdamW's own parameters are kept."""
    train_generator(small_recipe(caches, optimizer={"name": turn[0], "steps": 6}), ALONE)
    before = final(caches / "run", 6).parts["model_optimizer"]
    train_generator(small_recipe(caches, optimizer={"name": turn[1]}), ALONE)
    after = final(caches / "run").parts["model_optimizer"]
    train_generator(small_recipe(caches, "other", optimizer={"name": turn[1], "steps": 1}), ALONE)
    assert after.keys() == final(caches / "other", 1).parts["model_optimizer"].keys()
    assert float(after["step/output.weight"]) == 12  # AdamW's in both
    left = len(before.keys() - after.keys())
    assert f"{left} moments of the checkpoint" in capsys.readouterr().out


def trained_by_two(file: str, rank: int) -> torch.Tensor:
    train_generator(vfmtok.load_config(file, kind=GeneratorRecipe), distributed.World(rank, 2, CPU))
    return torch.zeros(1)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_agree(caches, parallel):
    """Two processes, and one: up to the bfloat16 in which Muon works."""
    settings = {"optimizer": {**LEARNING, "weight_decay": 0.5, "steps": 8}}
    train_generator(small_recipe(caches, "one", **settings), ALONE)
    ranks.run(partial(trained_by_two, str(recipe_file(caches, "two", parallel=parallel, **settings))), caches)
    assert logged(caches / "two", "loss/token") == pytest.approx(logged(caches / "one", "loss/token"), abs=5e-4)
    one, two = (final(caches / name, 8).parts for name in ("one", "two"))
    for part, tensors in one.items():
        assert tensors.keys() == two[part].keys()
        for name, tensor in tensors.items():
            assert (tensor - two[part][name]).norm() <= 0.05 * tensor.norm(), (part, name)


def test_what_is_refused():
    """Fields without muon; before the first step, a model without matrices."""
    for field in ("muon_lr_factor", "muon_momentum"):
        with pytest.raises(ConfigError, match=f"optimizer.{field} belongs to optimizer.name muon"):
            OptimizerConfig(**{field: 0.5})
    with pytest.raises(ConfigError, match="use adamw"):
        build_optimizer(OptimizerConfig(name="muon"), [{"params": list(Small().parameters())}]).describe(CPU)
