"""PSNR and SSIM against scikit-image, image by image."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vfmtok.errors import EvaluationError
from vfmtok.metrics.pixels import PIXEL_METRICS, PixelMetrics, ssim


@pytest.fixture
def pair():
    """Smooth images, and the same with noise that grows from image to image; one pair nearly black."""
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.uniform(0, 255, (9, 3, 6, 5)))
    smooth = torch.nn.functional.interpolate(coarse, size=(37, 29), mode="bilinear")
    noise = torch.from_numpy(draw.normal(0, 1, (9, 3, 37, 29))) * torch.arange(1, 10).view(9, 1, 1, 1) * 4
    originals, reconstructions = smooth, smooth + noise
    originals[4], reconstructions[4] = originals[4] * 0.01, reconstructions[4].clamp(0, 3)
    return tuple(t.clamp(0, 255).to(torch.uint8) for t in (originals, reconstructions))


def expected(pair):
    pairs = [(x.permute(1, 2, 0).numpy() / 255, y.permute(1, 2, 0).numpy() / 255) for x, y in zip(*pair, strict=True)]
    return {
        "psnr": [peak_signal_noise_ratio(x, y, data_range=1.0) for x, y in pairs],
        "ssim": [structural_similarity(x, y, data_range=1.0, channel_axis=-1) for x, y in pairs],
        "ssim_data_range_2": [structural_similarity(x, y, data_range=2.0, channel_axis=-1) for x, y in pairs],
    }


def test_against_scikit_image(pair):
    metrics = PixelMetrics(tuple(PIXEL_METRICS))
    values, reference = metrics.update(*pair), expected(pair)
    assert values.keys() == reference.keys()
    for name in reference:
        assert np.allclose(values[name], reference[name], rtol=1e-9, atol=1e-12), name
        assert metrics.compute()[name] == pytest.approx(np.mean(reference[name]), rel=1e-9)
    assert metrics.compute()["ssim_data_range_2"] > metrics.compute()["ssim"]
    # skimage on uint8 infers the right range; it is ours
    x, y = (t[0].permute(1, 2, 0).numpy() for t in pair)
    assert values["ssim"][0].item() == pytest.approx(structural_similarity(x, y, channel_axis=-1), rel=1e-9)


def test_batches_change_nothing(pair):
    whole = PixelMetrics()
    whole.update(*pair)
    for batch in (1, 7, 64):
        metrics = PixelMetrics()
        for x, y in zip(pair[0].split(batch), pair[1].split(batch), strict=True):
            metrics.update(x, y)
        assert metrics.compute() == pytest.approx(whole.compute(), rel=1e-12)
    metrics.reset()
    with pytest.raises(EvaluationError, match="no images"):
        metrics.compute()


def test_lpips_is_any_callable_on_unit_range(pair):
    def distance(x, y):
        assert x.dtype == torch.float32 and x.min() >= -1 and x.max() <= 1 and x.min() < -0.5
        return (x - y).abs().mean((1, 2, 3)).view(-1, 1, 1, 1)

    metrics = PixelMetrics((), {"lpips": distance})
    values = metrics.update(*pair)["lpips"]
    reference = (pair[0].double() - pair[1].double()).abs().mean((1, 2, 3)) / 127.5
    assert torch.allclose(values, reference, rtol=1e-5)
    assert metrics.compute() == {"lpips": pytest.approx(reference.mean().item(), rel=1e-5)}
    with pytest.raises(EvaluationError, match="one value an image"):
        PixelMetrics((), {"lpips": lambda x, y: (x - y).mean()}).update(*pair)


def test_identical_images(pair):
    metrics = PixelMetrics()
    metrics.update(pair[0], pair[0])
    assert metrics.compute() == {"psnr": float("inf"), "ssim": pytest.approx(1, abs=1e-12)}


def test_what_it_refuses(pair):
    metrics = PixelMetrics()
    with pytest.raises(EvaluationError, match="don't match"):
        metrics.update(pair[0], pair[1][:3])
    with pytest.raises(EvaluationError, match="uint8"):
        metrics.update(pair[0] / 255, pair[1] / 255)
    with pytest.raises(EvaluationError, match="at least 7x7"):
        ssim(torch.zeros(1, 3, 6, 9), torch.zeros(1, 3, 6, 9))
    with pytest.raises(EvaluationError, match="no pixel metric 'msssim'"):
        PixelMetrics(("msssim",))
