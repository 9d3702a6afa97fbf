"""Resizing of images, by the conventions of different publications.

Shapes: B batch, H and W sides of the image, S of the wanted square.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Resize = Literal["antialias", "blur", "bilinear", "bicubic"]
BY_SCALE = ("bilinear", "bicubic")  # those by which ``resize_by`` resizes


def resize_square(images: Tensor, size: int, how: Resize = "antialias") -> Tensor:
    """images (B,3,H,W) -> (B,3,size,size); images of that size are returned as they are.

    "antialias" widens PyTorch's kernel where it shrinks (VFMTok); "blur" blurs first instead (Hita, VFMAE; kornia's
    way): by the factor f = side / size > 1 of each axis with sigma max((f - 1) / 2, 0.001). Both are bicubic with
    aligned corners. "bilinear" and "bicubic" do not align them, and widen the kernel where they shrink (VFM-VAE).
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if how == "antialias":
        shrinks = max(height, width) > size
        return F.interpolate(images, (size, size), mode="bicubic", align_corners=True, antialias=shrinks)
    if how in BY_SCALE:
        shrinks = max(height, width) > size
        return F.interpolate(images, (size, size), mode=how, align_corners=False, antialias=shrinks)
    if max(height, width) > size:
        images = _blurred(images, height / size, -2)
        images = _blurred(images, width / size, -1)
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=True)


def resize_by(images: Tensor, factor: float, how: str = "bilinear", antialias: bool = True) -> Tensor:
    """images (B,C,H,W) -> (B,C,H*factor,W*factor), rounded down; places are sampled by the factor itself.

    Args:
        how: "bilinear" or "bicubic", corners not aligned.
        antialias: widen the kernel where it shrinks.
    """
    if factor == 1:
        return images
    antialias = antialias and factor < 1
    return F.interpolate(images, scale_factor=factor, mode=how, align_corners=False, antialias=antialias)


def _blurred(images: Tensor, factor: float, axis: int) -> Tensor:
    """A Gaussian along one axis (-2 or -1) with reflected borders."""
    sigma = max((factor - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3))
    taps += taps % 2 == 0
    places = torch.arange(taps, device=images.device, dtype=images.dtype) - taps // 2
    kernel = (-(places**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1) if axis == -2 else (kernel / kernel.sum()).view(1, 1, 1, -1)
    margin = (0, 0, taps // 2, taps // 2) if axis == -2 else (taps // 2, taps // 2, 0, 0)
    channels = images.shape[1]
    padded = F.pad(images, margin, mode="reflect")
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)
