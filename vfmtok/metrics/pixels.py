"""How near reconstructions are to their originals: PSNR, SSIM and distances by networks, each a mean over images.

Values are [0,1] (uint8 / 255), float64. SSIM is scikit-image's default and so the field's: uniform 7x7 windows,
sample covariances, the channels' mean, K1 = 0.01, K2 = 0.03. The field also has a **flattering variant**, here by
its name ``ssim_data_range_2``: published tokenizer code tells scikit-image that [0,1] images have a range of 2,
which makes the constants four times as large and the number higher. It compares with those publications only.

Shapes: B batch, H, W sides.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok import distributed
from vfmtok.errors import EvaluationError
from vfmtok.metrics.frechet import as_float64

Distance = Callable[[Tensor, Tensor], Tensor]  # two batches -> one value an image (B,)
WINDOW = 7
_K1, _K2 = 0.01, 0.03


def psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Two batches (B,3,H,W) in [0,1] -> (B,) in dB: -10 log10 of the mean squared error; equal images give infinity."""
    return -10 * (originals - reconstructions).square().mean(dim=(1, 2, 3)).log10()


def ssim(originals: Tensor, reconstructions: Tensor, data_range: float = 1.0) -> Tensor:
    """Two batches (B,3,H,W) in [0,1] -> (B,) at most 1 (Wang et al., 2004; scikit-image's defaults).

    Raises:
        EvaluationError: an image is smaller than the window.
    """
    if min(originals.shape[-2:]) < WINDOW:
        raise EvaluationError(f"SSIM needs images of at least {WINDOW}x{WINDOW}, got {tuple(originals.shape[-2:])}")
    x, y = originals, reconstructions
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    mean_x, mean_y = _window_mean(x), _window_mean(y)  # (B,3,H-6,W-6)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    var_x = sample * (_window_mean(x * x) - mean_x * mean_x)
    var_y = sample * (_window_mean(y * y) - mean_y * mean_y)
    covariance = sample * (_window_mean(x * y) - mean_x * mean_y)
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness = likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return likeness.mean(dim=(1, 2, 3))


def ssim_data_range_2(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """The published variant, of [0,1] images with a data range of 2: flattering, see the top of this file."""
    return ssim(originals, reconstructions, data_range=2.0)


def _window_mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, WINDOW, stride=1)


PIXEL_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "psnr": psnr,
    "ssim": ssim,
    "ssim_data_range_2": ssim_data_range_2,
}


class PixelMetrics:
    """Means over images as they come, over all ranks.

    Args:
        names: of ``PIXEL_METRICS``.
        distances: by name, (originals, reconstructions), float32 (B,3,H,W) in [-1,1] -> one distance an image, such
            as LPIPS.
    """

    def __init__(
        self, names: tuple[str, ...] = ("psnr", "ssim"), distances: Mapping[str, Distance] = MappingProxyType({})
    ):
        unknown = [name for name in names if name not in PIXEL_METRICS]
        if unknown:
            raise EvaluationError(f"no pixel metric '{unknown[0]}', only: {', '.join(PIXEL_METRICS)}")
        self.names, self.distances = names, distances
        self.reset()

    def reset(self) -> None:
        self._sums = torch.zeros(len(self.names) + len(self.distances) + 1, dtype=torch.float64)  # and the count

    @torch.no_grad()
    def update(self, originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
        """Two batches (B,3,H,W) uint8 -> by name the values (B,) of these images, float64."""
        if originals.shape != reconstructions.shape or originals.dim() != 4:
            raise EvaluationError(
                f"originals {tuple(originals.shape)} and reconstructions {tuple(reconstructions.shape)} don't match"
            )
        if originals.dtype != torch.uint8 or reconstructions.dtype != torch.uint8:
            raise EvaluationError("pixel metrics take uint8 images, as they would be saved")
        x, y = as_float64(originals) / 255, as_float64(reconstructions) / 255  # (B,3,H,W)
        values = {name: PIXEL_METRICS[name](x, y) for name in self.names}
        for name in self.distances:
            values[name] = self._distances(name, originals, reconstructions)
        sums = torch.stack([v.sum().to(x.device) for v in values.values()] + [x.new_tensor(float(len(x)))])
        self._sums = self._sums.to(sums.device) + sums
        return values

    def compute(self) -> dict[str, float]:
        """By name the mean over all images of all ranks; every rank must call it.

        Raises:
            EvaluationError: no images came.
        """
        sums = distributed.sum_over_ranks(self._sums.cpu().clone())
        if not sums[-1]:
            raise EvaluationError("no images to compare")
        return dict(zip([*self.names, *self.distances], (sums[:-1] / sums[-1]).tolist(), strict=True))

    def _distances(self, name: str, originals: Tensor, reconstructions: Tensor) -> Tensor:
        values = self.distances[name](*(images.float() / 127.5 - 1 for images in (originals, reconstructions)))
        if values.numel() != len(originals):
            raise EvaluationError(f"{name} must give one value an image, got {tuple(values.shape)}")
        return as_float64(values.flatten())
