"""Pixel and feature losses against float64 by hand."""

import numpy as np
import pytest
import torch

from vfmtok.losses.feature import feature_loss
from vfmtok.losses.reconstruction import pixel_loss


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind, power", [("l2", 2), ("l1", 1)])
def test_pixel_loss(kind, power):
    a, b = torch.randn(2, 3, 5, 7), torch.rand(2, 3, 5, 7)
    a.requires_grad_()
    loss = pixel_loss(a, b, kind)
    difference = a.detach().double().numpy() - b.double().numpy()
    assert loss.item() == pytest.approx(np.mean(np.abs(difference) ** power), rel=1e-6)
    loss.backward()
    slope = power * np.abs(difference) ** (power - 1) * np.sign(difference) / difference.size
    assert np.allclose(a.grad.numpy(), slope, atol=1e-7)


def test_feature_loss():
    a, b = torch.randn(2, 9, 16, requires_grad=True), torch.randn(2, 9, 16)
    x, y = a.detach().double().numpy(), b.double().numpy()
    cosine = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    loss = feature_loss(a, b)
    assert loss.item() == pytest.approx((1 - cosine).mean(), rel=1e-6)
    loss.backward()
    assert (a.grad * a).sum(-1).abs().max() < 1e-7  # the length of a feature does not matter
    assert feature_loss(a, 3 * a).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "loss", [lambda a, b: pixel_loss(a, b, "l2"), lambda a, b: pixel_loss(a, b, "l1"), feature_loss]
)
def test_float32_under_autocast(loss):
    a, b = torch.randn(2, 4, 8).bfloat16(), torch.randn(2, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(a, b)
    assert value.dtype == torch.float32
    assert value.item() == loss(a.float(), b).item()
