"""The crop of a training run, by the name that a recipe gives it.

Shapes: S crop side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vfmtok.data.image_files import open_image
from vfmtok.data.transforms import CounterRandom, RandomCrop, decode_rgb

Crop = Literal["random", "center", "zoom"]
SHARES = (0.5, 1.0)  # of the short side, that a zoomed crop covers


@dataclass(frozen=True)
class ZoomedCrop:
    """A square of half the short side to all of it, anywhere, by Pillow's Lanczos to the wanted side; half the time its
    mirror image (VFM-VAE's). A function of the file's bytes and (seed, epoch, index)."""

    size: int
    seed: int = 0
    flip: bool = True

    def __call__(self, data: bytes, epoch: int, index: int) -> Tensor:
        """Encoded image -> uint8 (3,S,S). Raises DataError for a damaged image."""
        image = decode_rgb(open_image(data, decode=False))
        random = CounterRandom(self.seed, epoch, index)
        share = SHARES[0] + (SHARES[1] - SHARES[0]) * random.below(1 << 53) / (1 << 53)
        side = max(1, int(share * min(image.size)))
        left, top = random.below(image.width - side + 1), random.below(image.height - side + 1)
        image = image.crop((left, top, left + side, top + side)).resize((self.size, self.size), Image.LANCZOS)
        crop = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return crop.flip(2) if self.flip and random.below(2) == 1 else crop


def training_crop(kind: Crop, size: int, seed: int, flip: bool) -> Callable[[bytes, int, int], Tensor]:
    """(file, epoch, index) -> uint8 (3,S,S)."""
    if kind == "zoom":
        return ZoomedCrop(size, seed, flip)
    return RandomCrop(size, seed, flip, centred=kind == "center")
