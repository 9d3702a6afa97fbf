"""The StyleGAN discriminator (Karras et al., 2019), without equalised learning rate and minibatch deviation.

Shapes: B batch, C channels, H and W sides of the map, h and w half of them, rounded up.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.discriminators.released import STYLEGAN
from vfmtok.errors import ConfigError
from vfmtok.layers.precision import at_least_float32

WIDTHS = (128, 256, 512)  # of the residual blocks; the last one repeats


class StyleGANDiscriminator(nn.Module):
    """Residual blocks halve the image to a 4x4 map (or 5x5 to 7x7, of sides that are no power of two).

    Raises:
        ConfigError: the image is smaller than 8x8.
    """

    released = STYLEGAN

    def __init__(self, image_size: int):
        super().__init__()
        if image_size < 8:
            raise ConfigError(f"the stylegan discriminator needs images of 8 px or more, got {image_size}")
        self.image_size = image_size
        depth = int(math.log2(image_size)) - 2  # six at 256
        widths = [64, *(WIDTHS[min(i, len(WIDTHS) - 1)] for i in range(depth))]
        residual = [ResidualBlock(a, b) for a, b in itertools.pairwise(widths)]
        self.blocks = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1), nn.LeakyReLU(0.2), *residual)
        self.last_conv = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        side = -(-image_size // 2**depth)
        self.to_logit = nn.Sequential(nn.Linear(widths[-1] * side**2, 512), nn.LeakyReLU(0.2), nn.Linear(512, 1))

    def forward(self, images: Tensor) -> Tensor:
        """images (B,3,S,S) in [-1,1] at ``image_size`` -> float32 logits (B,1)."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"images must be (B,3,{self.image_size},{self.image_size}), got {tuple(images.shape)}")
        x = self.blocks(images)  # (B,C,s,s)
        x = F.leaky_relu(self.last_conv(x), 0.2)  # (B,C,s,s)
        return at_least_float32(self.to_logit(x.flatten(1)))  # (B,1)


class ResidualBlock(nn.Module):
    """(main(x) + skip(x)) / sqrt(2), both halving the map."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.skip = nn.Conv2d(inputs, outputs, 1, stride=2)
        self.convs = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.blur = Blur()
        self.halve = nn.Conv2d(outputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C',h,w)."""
        main = self.halve(self.blur(self.convs(x)))  # (B,C',h,w)
        return (main + self.skip(x)) / math.sqrt(2)


class Blur(nn.Module):
    """Depthwise 3x3 smoothing before the map is halved, at reflected borders.

    Kernel: outer(f,f) / sum |outer(f,f)|, f = [1,2,1]. It is separable, so f runs along the rows and
    then the columns: 6 products per pixel instead of 9.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("filter", torch.tensor([1.0, 2.0, 1.0]))  # saved, as in published checkpoints

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        f = (self.filter / self.filter.abs().sum()).to(x.dtype)  # sum |outer(f,f)| = (sum |f|)^2
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        rows = F.conv2d(padded, f.view(1, 1, 1, 3).expand(x.shape[1], 1, 1, 3), groups=x.shape[1])
        return F.conv2d(rows, f.view(1, 1, 3, 1).expand(x.shape[1], 1, 3, 1), groups=x.shape[1])
