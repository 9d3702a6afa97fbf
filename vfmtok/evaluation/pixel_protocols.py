"""How reconstructions and their originals become the pixels that are compared, where publications differ in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vfmtok.data.torchvision_crop import TorchvisionCrop
from vfmtok.data.transforms import EvaluationCrop
from vfmtok.losses.structural import structural_similarity
from vfmtok.metrics.pixels import Distance

PixelProtocol = Literal["ours", "vfm-vae"]
GAUSSIAN_SSIM = "ssim_gaussian"
SEED = 0  # of sampled latents


@dataclass(frozen=True)
class Pixels:
    """
    Attributes:
        crop: side -> what makes the square that is encoded of an image file.
        offset: reconstructions in [-1,1] are 127.5 x + this, truncated.
        samples: whether latents are drawn from the posterior where there is one, by (seed, record); else its mean.
        further: what is measured besides, one value an image, by name.
        said: what a number's protocol adds.
    """

    crop: Callable[[int], Callable[[bytes], Tensor]] = EvaluationCrop
    offset: float = 128.0
    samples: bool = False
    further: tuple[tuple[str, Distance], ...] = ()
    said: str = ""


PIXEL_PROTOCOLS: dict[PixelProtocol, Pixels] = {
    "ours": Pixels(),
    "vfm-vae": Pixels(
        TorchvisionCrop,
        127.5,
        True,
        ((GAUSSIAN_SSIM, structural_similarity),),
        f", cut by torchvision's Resize and CenterCrop, latents sampled (seed {SEED}), reconstructions truncated",
    ),
}
