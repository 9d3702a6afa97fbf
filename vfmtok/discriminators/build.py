"""The discriminators by the names of ``--disc-type``."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from vfmtok.discriminators.dino import DinoDiscriminator
from vfmtok.discriminators.patchgan import PatchGAN
from vfmtok.discriminators.stylegan import StyleGANDiscriminator
from vfmtok.errors import ConfigError

# (side of the images, frozen backbone's weights) -> module. AdversarialConfig.discriminator lists the same names.
DISCRIMINATORS: dict[str, Callable[[int, str | Path], nn.Module]] = {
    "dinogan": lambda image_size, weights: DinoDiscriminator(weights),
    "patchgan": lambda image_size, weights: PatchGAN(image_size),
    "stylegan": lambda image_size, weights: StyleGANDiscriminator(image_size),
}


def build_discriminator(kind: str, image_size: int, weights: str | Path = "hub") -> nn.Module:
    """A discriminator: images (B,3,image_size,image_size) in [-1,1] -> float32 logits of any shape, large for real.

    ``parameters()`` and ``state_dict()`` hold what is trained and nothing else: the frozen backbone
    of "dinogan" is outside of both, though it moves with the module.

    Args:
        kind: a name of ``DISCRIMINATORS``.
        image_size: side of the images; "dinogan" brings any to 224.
        weights: of the frozen backbone of "dinogan", the only one that has any: "hub", the path of
            Meta's or timm's file, or "none" for random ones, which is for trials of the machinery.

    Raises:
        ConfigError: there is no such kind, or the images are too small for it.
        WeightsError: the backbone's weights can't be found or are of another model.
    """
    if kind not in DISCRIMINATORS:
        raise ConfigError(f"the discriminator must be one of {', '.join(DISCRIMINATORS)}, got '{kind}'")
    return DISCRIMINATORS[kind](image_size, weights)
