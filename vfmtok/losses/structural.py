"""How unlike the structure of two images is: one minus their structural similarity (Wang et al., 2004).

Shapes: B batch, H and W image sides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok.layers.precision import at_least_float32

REACH = 5  # px of the window on either side
SIGMA = 1.5  # px
DATA_RANGE = 2.0  # of images in [-1,1]
C1, C2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2


def ssim_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM of images (B,3,H,W), clamped to [-1,1], of at least 6 px -> float32 scalar in [0,2].

    A Gaussian window of 11x11 px and sigma 1.5 around every pixel, images reflected at their borders, variances
    E[x^2] - E[x]^2 under the window floored at 0; the mean over pixels, channels and images.
    """
    return 1 - _similarities(reconstruction, target).mean()


def structural_similarity(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """The same SSIM of every image: two batches (B,3,H,W) -> float32 (B,), at most 1."""
    return _similarities(reconstructions, originals).mean(dim=(1, 2, 3))


def _similarities(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Of the windows around all pixels: float32 (B,3,H,W)."""
    with torch.autocast(target.device.type, enabled=False):
        x, y = (at_least_float32(images).clamp(-1, 1) for images in (reconstruction, target))
        moments = _windowed(torch.cat([x, y, x * x, y * y, x * y]))  # (5B,3,H,W)
        mean_x, mean_y, square_x, square_y, product = moments.chunk(5)
        variance_x, variance_y = F.relu(square_x - mean_x**2), F.relu(square_y - mean_y**2)
        covariance = product - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
        structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
        return luminance * structure


def _windowed(maps: Tensor) -> Tensor:
    """Means under the window around every pixel: (N,3,H,W) -> the same shape. The window is an outer product."""
    places = torch.arange(-REACH, REACH + 1, device=maps.device, dtype=maps.dtype)
    window = (-(places**2) / (2 * SIGMA**2)).exp()
    window = window / window.sum()
    flat = F.pad(maps, (REACH, REACH, REACH, REACH), mode="reflect").flatten(0, 1)[:, None]  # (N*3,1,H+10,W+10)
    flat = F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))  # (N*3,1,H,W)
    return flat.view_as(maps)
