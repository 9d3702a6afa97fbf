"""PatchGANs on an image, its half and its quarter (pix2pixHD, Wang et al., 2018, as VFM-VAE sets it up).

Shapes: B batch, H and W image sides, h and w sides of a map, C channels.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.discriminators.batch_norm import LocalBatchNorm
from vfmtok.discriminators.released import MULTISCALE_PATCHGAN
from vfmtok.layers.precision import at_least_float32

SCALES = 3
LAYERS = (  # input and output channels, stride, whether batch norm follows
    (3, 64, 2, False),
    (64, 128, 2, True),
    (128, 256, 2, True),
    (256, 512, 1, True),
    (512, 1, 1, False),
)


class Read(NamedTuple):
    """What a discriminator makes of images at one scale."""

    logits: Tensor  # (B,1,h,w) float32
    features: list[Tensor]  # (B,C,h,w) behind every hidden layer


class MultiScalePatchGAN(nn.Module):
    """Three PatchGANs with equal layers and weights of their own. Images of any size of 4 px or more."""

    released = MULTISCALE_PATCHGAN
    takes_any_size = True

    def __init__(self):
        super().__init__()
        # Of the quarter, the half and the whole image: the order of the published names.
        self.scales = nn.ModuleList(nn.ModuleList(Layer(*layer) for layer in LAYERS) for _ in range(SCALES))

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B,3,H,W) in [-1,1] -> logits (B,1,h,w) of the whole image, its half and its quarter."""
        return [found.logits for found in self.read(images)]

    def read(self, images: Tensor) -> list[Read]:
        """The same, with the maps behind the hidden layers."""
        found = []
        for layers in reversed(self.scales):
            maps = [images]
            for layer in layers:
                maps.append(layer(maps[-1]))
            found.append(Read(at_least_float32(maps[-1]), maps[1:-1]))
            images = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)  # (B,3,H/2,W/2)
        return found


class Layer(nn.Module):
    """4x4 convolution; but for the last layer LeakyReLU 0.2; in between batch norm over groups of samples."""

    def __init__(self, inputs: int, outputs: int, stride: int, normalised: bool):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, stride, padding=2)
        nn.init.normal_(self.conv.weight, 0.0, 0.02)
        self.norm = LocalBatchNorm(outputs, eps=1e-5) if normalised else None
        self.is_last = outputs == 1

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C',h',w')."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x.flatten(2)).view_as(x)
        return x if self.is_last else F.leaky_relu(x, 0.2)
