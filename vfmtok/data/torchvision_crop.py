"""The centre square as torchvision cuts it of Pillow's images, which some publications evaluate on.

Shapes: S crop side.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vfmtok.data.image_files import open_image
from vfmtok.data.transforms import decode_rgb


@dataclass(frozen=True)
class TorchvisionCrop:
    """Its Resize (bilinear, with antialiasing) and CenterCrop."""

    size: int

    def __call__(self, data: bytes, epoch: int = 0, index: int = 0) -> Tensor:
        """Encoded image -> uint8 (3,S,S). Raises DataError for a damaged image."""
        image, side = decode_rgb(open_image(data, decode=False)), self.size
        resized = [side * length // min(image.size) for length in image.size]  # (width, height)
        left, top = (round((length - side) / 2) for length in resized)
        image = image.resize(resized, Image.BILINEAR).crop((left, top, left + side, top + side))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
