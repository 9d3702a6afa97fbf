"""Differentiable augmentation of what a discriminator sees (DiffAugment, Zhao et al., 2020).

Shapes: B batch, H and W image sides.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DRAWS = 7  # uniform numbers of an image


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each image."""

    brightness: Tensor  # (B,) in [0,1), and so the next two
    saturation: Tensor
    contrast: Tensor
    shift: Tensor  # (B,2) int64: rows and columns that the image is read further on, in [-side/8, side/8]
    cut: Tensor  # (B,2) int64: row and column about which a square is cut out

    @staticmethod
    def of(uniform: Tensor, height: int, width: int) -> "Augmentation":
        """From numbers (B,7) in [0,1), for images of this size."""
        shift, cut = [], []
        for axis, side in enumerate((height, width)):
            reach = int(side / 8 + 0.5)
            shift.append(_integer(uniform[:, 3 + axis], 2 * reach + 1) - reach)
            cut.append(_integer(uniform[:, 5 + axis], side + 1 - _square(side) % 2))
        return Augmentation(*uniform[:, :3].unbind(dim=1), torch.stack(shift, dim=1), torch.stack(cut, dim=1))


def _integer(uniform: Tensor, count: int) -> Tensor:
    """In [0,1) -> int64 in [0,count); a number near 1 may be rounded up on the way."""
    return (uniform * count).long().clamp(max=count - 1)


def _square(side: int) -> int:
    """The side of the square that is cut out, in px."""
    return int(0.2 * side + 0.5)


def augment(images: Tensor, drawn: Augmentation) -> Tensor:
    """images (B,3,H,W) in [-1,1] -> the same shape, perhaps beyond; gradients flow to the images.

    In this order: brightness + (u - 0.5); saturation by 2u about the mean of channels; contrast by u + 0.5 about the
    mean of the image; a shift by up to an eighth of the sides, zeros coming in; a square of a fifth cut out to zero.
    """
    brightness, saturation, contrast = (
        number.view(-1, 1, 1, 1).to(images.dtype) for number in (drawn.brightness, drawn.saturation, drawn.contrast)
    )
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * (contrast + 0.5) + mean
    return _cut_out(_shifted(images, drawn.shift), drawn.cut)


def _shifted(images: Tensor, shift: Tensor) -> Tensor:
    """out[i,j] = in[i + rows, j + columns], 0 outside."""
    read, inside = [], []
    for axis, side in enumerate(images.shape[-2:]):
        places = torch.arange(side, device=images.device) + shift[:, axis, None]  # (B,side)
        inside.append((places >= 0) & (places < side))
        read.append(places.clamp(0, side - 1))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[batch, read[0][:, :, None], read[1][:, None, :]].permute(0, 3, 1, 2)
    return moved * (inside[0][:, None, :, None] & inside[1][:, None, None, :])


def _cut_out(images: Tensor, cut: Tensor) -> Tensor:
    """Zeros in a square of a fifth of the sides, the part of it that lies inside."""
    within = []
    for axis, side in enumerate(images.shape[-2:]):
        size = _square(side)
        first = cut[:, axis, None] - size // 2  # (B,1)
        places = torch.arange(side, device=images.device)
        within.append((places >= first) & (places < first + size))  # (B,side)
    return images * ~(within[0][:, None, :, None] & within[1][:, None, None, :])
