"""How both sides of a comparison are brought to its size: as most publications do, or with Pillow as Hita's does.

Shapes: B batch, S side of the images, E side of the comparison.
"""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Resize = Literal["bicubic", "pillow"]
PROTOCOLS = {  # what a number's protocol adds
    "bicubic": "",
    "pillow": ", resized as uint8 by Pillow's bicubic filter with antialiasing",
}


def resize_with_pillow(pixels: Tensor, size: int) -> Tensor:
    """(B,S,S,3) uint8 -> (B,E,E,3) uint8 on the same device: ``Image.resize`` with its default filter."""
    if pixels.shape[1:3] == (size, size):
        return pixels
    images = [Image.fromarray(image).resize((size, size)) for image in pixels.cpu().numpy()]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).to(pixels.device)
