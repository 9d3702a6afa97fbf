"""The PatchGAN discriminator (Isola et al., 2017): one logit per overlapping 70x70 patch.

Shapes: B batch, H and W image sides, h and w sides of the logit map, about an eighth.
"""

from torch import Tensor, nn

from vfmtok.discriminators.batch_norm import GlobalBatchNorm2d
from vfmtok.discriminators.released import PATCHGAN
from vfmtok.errors import ConfigError
from vfmtok.layers.precision import at_least_float32

SMALLEST = 24  # px: below, nothing is left for the last convolution


class PatchGAN(nn.Module):
    """Five 4x4 convolutions; three of them halve the map, three are followed by batch norm over all ranks.

    Raises:
        ConfigError: images of ``image_size`` leave no map.
    """

    released = PATCHGAN
    takes_any_size = True

    def __init__(self, image_size: int):
        super().__init__()
        if image_size < SMALLEST:
            raise ConfigError(f"the patchgan discriminator needs images of {SMALLEST} px or more, got {image_size}")
        self.layers = nn.Sequential(
            nn.Conv2d(3, 64, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            *_block(64, 128, stride=2),
            *_block(128, 256, stride=2),
            *_block(256, 512, stride=1),
            nn.Conv2d(512, 1, 4, padding=1),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """images (B,3,H,W) in [-1,1] -> float32 logits (B,1,h,w)."""
        return at_least_float32(self.layers(images))


def _block(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 4, stride, padding=1, bias=False)  # the norm has one
    return convolution, GlobalBatchNorm2d(outputs), nn.LeakyReLU(0.2)
