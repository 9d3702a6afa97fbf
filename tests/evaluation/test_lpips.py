"""LPIPS for the evaluation: a value an image, or a note why there is none."""

import hashlib

import pytest
import tiny_models
import torch
import torchvision

from vfmtok.errors import WeightsError
from vfmtok.evaluation.lpips import open_lpips
from vfmtok.losses.perceptual import LPIPS
from vfmtok.metrics.pixels import PixelMetrics


def test_a_value_for_every_image(tmp_path):
    torch.manual_seed(0)
    features = torchvision.models.vgg16(weights=None).features.state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in features.items()}, tmp_path / "vgg.pth")
    distance, digest = open_lpips(tmp_path / "vgg.pth", tiny_models.WORLD)
    assert digest == hashlib.sha256((tmp_path / "vgg.pth").read_bytes()).hexdigest()
    images = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    values = PixelMetrics((), {"lpips": distance}).update(*images)["lpips"]
    one = LPIPS("vgg", tmp_path / "vgg.pth")
    expected = [one(b[None] / 127.5 - 1, a[None] / 127.5 - 1).item() for a, b in zip(*images, strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-4) and min(expected) > 0


def test_without_weights_there_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    distance, problem = open_lpips(None, tiny_models.WORLD)
    assert distance is None and problem.startswith("LPIPS: the weights of 'vgg' are neither in torch hub's cache")
    with pytest.raises(WeightsError, match="no weight file"):
        open_lpips(tmp_path / "absent.pth", tiny_models.WORLD)
