"""The linear probe against the protocol written out in NumPy, and on problems with known answers."""

import math

import numpy as np
import pytest
import torch

from vfmtok.errors import EvaluationError
from vfmtok.metrics import probe as module
from vfmtok.metrics.probe import ProbeRecipe, linear_probe


def clusters(seed, count, classes, dim, spread):
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, classes, (count,), generator=draw)
    return centres[labels] + spread * torch.randn(count, dim, generator=draw), labels


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_known_answers(optimizer):
    recipe = ProbeRecipe(optimizer, base_lr=20.0 if optimizer == "lars" else 4e-3, batch=64, epochs=20, warmup_epochs=3)
    train, val = clusters(0, 600, 6, 20, 0.2), clusters(1, 300, 6, 20, 0.2)
    result = linear_probe(*train, *val, 6, recipe)
    assert result.top1 == 1 and result.top5 == 1 and (result.train_images, result.val_images) == (600, 300)
    # Features that have nothing to do with the labels: chance, 1/6 within 4 standard errors.
    noise = torch.randn(900, 20, generator=torch.Generator().manual_seed(2))
    guess = linear_probe(noise[:600], train[1], noise[600:], val[1], 6, recipe)
    assert abs(guess.top1 - 1 / 6) < 4 * math.sqrt(5 / 36 / 300)


@pytest.mark.parametrize("count", [50, 41])  # a last batch of 10; one of 1, which joins the one before
def test_lars_against_numpy(count):
    """Loss, gradient, trust ratio, momentum, warm-up and cosine, BatchNorm's batch and running statistics."""
    (x, labels), (val_x, val_labels) = clusters(3, count, 3, 4, 1.5), clusters(4, 40, 3, 4, 1.5)
    recipe = ProbeRecipe(batch=20, epochs=6, warmup_epochs=2, base_lr=30.0)
    probe = module._build_probe(4, 3, 0)
    weight, bias = (p.detach().double().numpy().copy() for p in probe[1].parameters())
    module._train(probe, x, labels, recipe)

    velocity_w, velocity_b, mean, var = np.zeros((3, 4)), np.zeros(3), np.zeros(4), np.ones(4)
    draw, step = torch.Generator().manual_seed(0), 0
    for _ in range(6):
        order = torch.randperm(count, generator=draw)
        blocks = order.split(20) if count == 50 else (order[:20], order[20:])
        for chosen in blocks:
            epoch = step / len(blocks)
            share = epoch / 2 if epoch < 2 else (1 + math.cos(math.pi * (epoch - 2) / 4)) / 2
            rate, step = 30.0 * 20 / 256 * share, step + 1
            rows = x[chosen].double().numpy()
            mean += 0.1 * (rows.mean(0) - mean)
            var += 0.1 * (rows.var(0, ddof=1) - var)
            rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-6)
            p = np.exp(rows @ weight.T + bias)
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(chosen)), labels[chosen].numpy()] -= 1
            gradient_w, gradient_b = p.T @ rows / len(chosen), p.mean(0)
            trust = 0.001 * np.linalg.norm(weight) / np.linalg.norm(gradient_w)
            velocity_w = 0.9 * velocity_w + trust * gradient_w
            velocity_b = 0.9 * velocity_b + gradient_b
            weight, bias = weight - rate * velocity_w, bias - rate * velocity_b
    assert np.allclose(probe[1].weight.detach(), weight, rtol=1e-3, atol=1e-6)
    assert np.allclose(probe[1].bias.detach(), bias, rtol=1e-3, atol=1e-5)

    logits = (val_x.double().numpy() - mean) / np.sqrt(var + 1e-6) @ weight.T + bias
    result = linear_probe(x, labels, val_x, val_labels, 3, recipe)
    assert result.top1 == pytest.approx((logits.argmax(1) == val_labels.numpy()).mean())


def test_tokens_are_averaged_and_results_repeat():
    (x, labels), (val_x, val_labels) = clusters(5, 100, 3, 4, 1.0), clusters(6, 80, 3, 4, 1.0)
    recipe = ProbeRecipe(batch=33, epochs=12, base_lr=10.0)  # a last batch of one, which BatchNorm can't take
    generator_state = torch.get_rng_state()
    first = linear_probe(x, labels, val_x, val_labels, 3, recipe)
    assert torch.equal(torch.get_rng_state(), generator_state)
    spread = torch.tensor([-1.0, 0.25, 0.75]).view(1, 3, 1)
    tokens, val_tokens = x[:, None] + spread, val_x[:, None] + spread
    assert linear_probe(tokens, labels, val_tokens, val_labels, 3, recipe) == first
    assert linear_probe(x, labels, val_x, val_labels, 3, recipe) == first


def test_what_it_refuses():
    x, labels = clusters(7, 20, 3, 4, 1.0)
    with pytest.raises(EvaluationError, match=r"labels must lie in 0 \.\.\. 1"):
        linear_probe(x, labels, x, labels, 2)
    with pytest.raises(EvaluationError, match="don't go with labels"):
        linear_probe(x, labels[:5], x, labels, 3)
    with pytest.raises(EvaluationError, match="'lars' or 'adamw'"):
        linear_probe(x, labels, x, labels, 3, ProbeRecipe("sgd"))
    with pytest.raises(EvaluationError, match="not finite"):
        linear_probe(x / 0, labels, x, labels, 3)
    with pytest.raises(EvaluationError, match="warmup_epochs"):
        linear_probe(x, labels, x, labels, 3, ProbeRecipe(epochs=5))
