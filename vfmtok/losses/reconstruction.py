"""How far the reconstruction's pixels are from the image's."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from vfmtok.layers.precision import at_least_float32


def pixel_loss(reconstruction: Tensor, target: Tensor, kind: Literal["l2", "l1"]) -> Tensor:
    """Mean squared ("l2") or mean absolute ("l1") difference of images (B,3,H,W) in [-1,1] -> float32 scalar."""
    difference = F.mse_loss if kind == "l2" else F.l1_loss
    return difference(at_least_float32(reconstruction), at_least_float32(target))


def small_image_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of a smaller image (B,3,h,w) and the target (B,3,H,W), both in [-1,1] -> float32 scalar.

    The target is shrunk to the image's size: bilinear, antialiased.
    """
    target = F.interpolate(
        at_least_float32(target), image.shape[-2:], mode="bilinear", align_corners=False, antialias=True
    )
    return F.l1_loss(at_least_float32(image), target)
