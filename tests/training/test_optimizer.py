"""The optimizer's step, learning rates and the average of weights, beside slow float64 loops."""

import math

import pytest
import safetensors.torch
import torch
from torch import nn

from vfmtok.training.ema import EMA
from vfmtok.training.optimizer import Stepper, build_optimizer, learning_rate, load_moments, moments
from vfmtok.training.recipe import OptimizerConfig
from vfmtok.weights.name_maps import own_tensors
from vfmtok.weights.saved import Part


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_clipped_steps_match_the_equations(name):
    """Clipping by the global norm, then the papers' updates, in float64."""
    config = OptimizerConfig(name=name, weight_decay=0.1, max_grad_norm=1.0)
    model = small_model()
    stepper = Stepper(build_optimizer(config, model.parameters()), model.parameters(), config.max_grad_norm)
    weights = [p.detach().double() for p in model.parameters()]
    m, v = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for t in range(1, 6):
        gradients(model, t)
        g = [p.grad.double() for p in model.parameters()]
        norm = math.sqrt(sum(float((x**2).sum()) for x in g))
        found = stepper.step(lr=0.01 * t)
        assert float(found) == pytest.approx(norm, rel=1e-6) and norm > 1
        for i, x in enumerate(g):
            x = x / norm
            if name == "adam":
                x = x + 0.1 * weights[i]
            else:
                weights[i] = weights[i] * (1 - 0.01 * t * 0.1)
            m[i] = 0.9 * m[i] + 0.1 * x
            v[i] = 0.95 * v[i] + 0.05 * x**2
            update = (m[i] / (1 - 0.9**t)) / ((v[i] / (1 - 0.95**t)).sqrt() + 1e-8)
            weights[i] = weights[i] - 0.01 * t * update
    for parameter, wanted in zip(model.parameters(), weights, strict=True):
        assert torch.allclose(parameter.double(), wanted, atol=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = small_model()
    stepper = Stepper(build_optimizer(OptimizerConfig(), model.parameters()), model.parameters(), 1.0)
    names = {p: n for n, p in model.named_parameters()}
    gradients(model, 0)
    stepper.step(0.01)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    kept = {n: t.clone() for n, t in moments(stepper.optimizer, names).items()}
    gradients(model, 1)
    model[0].weight.grad[0, 0] = float("inf")
    assert not torch.isfinite(stepper.step(0.01))
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert all(torch.equal(kept[n], t) for n, t in moments(stepper.optimizer, names).items())
    assert all(p.grad is None for p in model.parameters())


def test_moments_round_trip(tmp_path):
    a, b = small_model(), small_model()
    steppers = [Stepper(build_optimizer(OptimizerConfig(), m.parameters()), m.parameters(), 1.0) for m in (a, b)]
    names = [{p: n for n, p in m.named_parameters()} for m in (a, b)]
    for t in range(3):
        gradients(a, t)
        steppers[0].step(0.01)
    b.load_state_dict(a.state_dict())
    safetensors.torch.save_file(moments(steppers[0].optimizer, names[0]), tmp_path / "moments.safetensors")
    load_moments(steppers[1].optimizer, names[1], Part(tmp_path / "moments.safetensors"))
    for model, stepper in zip((a, b), steppers, strict=True):
        gradients(model, 9)
        stepper.step(0.01)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_learning_rates():
    """DESIGN 7: from 1e-7 linearly to 1e-4, then constant; and the cosine to its final rate."""
    config = OptimizerConfig()
    rates = [learning_rate(config, step, 4, 10) for step in range(10)]
    assert rates[:5] == pytest.approx([1e-7 + (1e-4 - 1e-7) * i / 4 for i in range(4)] + [1e-4])
    assert set(rates[4:]) == {1e-4}
    cosine = OptimizerConfig(decay="cosine", final_lr=1e-5)
    assert learning_rate(cosine, 7, 4, 10) == pytest.approx((1e-4 + 1e-5) / 2)
    assert learning_rate(cosine, 10, 4, 10) == pytest.approx(1e-5)
    linear = OptimizerConfig(decay="linear", lr=2e-4, final_lr=2e-5, decay_from=0.05)  # DiT-DH's, 40 epochs of 800
    assert [learning_rate(linear, step, 0, 800) for step in (0, 40, 420, 800)] == pytest.approx(
        [2e-4, 2e-4, 1.1e-4, 2e-5]
    )
    assert learning_rate(config, 0, 0, 10) == 1e-4


@pytest.mark.parametrize("warmup", [False, True])
def test_average_matches_a_loop(warmup):
    model = small_model()
    ema = EMA(own_tensors(model), decay=0.9, warmup=warmup)
    slow = {n: t.detach().double().clone() for n, t in model.state_dict().items()}
    for step in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(5, 3))  # moves the batch norm's statistics and its count
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        for name, tensor in model.state_dict().items():
            slow[name] = decay * slow[name] + (1 - decay) * tensor.double() if tensor.is_floating_point() else tensor
    for name, tensor in ema.average.items():
        assert torch.allclose(tensor.double(), slow[name].double(), atol=1e-6), name


def test_swapping_in_the_average_computes_with_it():
    model = small_model().eval()
    x = torch.randn(6, 3)
    ema = EMA(own_tensors(model), decay=0.5)
    with torch.no_grad():
        model[0].weight.mul_(3)
    ema.update(0)
    live, average = model(x), {name: tensor.clone() for name, tensor in ema.average.items()}
    with ema.swapped_in():
        inside = model(x)
    assert torch.equal(inside, torch.func.functional_call(model, average, (x,)))
    assert torch.equal(model(x), live) and not torch.equal(inside, live)
