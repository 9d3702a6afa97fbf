"""The discriminators by the names of ``--disc-type``."""

from pathlib import Path

from torch import nn

from vfmtok.discriminators.dino import DinoDiscriminator
from vfmtok.discriminators.patchgan import PatchGAN
from vfmtok.discriminators.stylegan import StyleGANDiscriminator
from vfmtok.errors import ConfigError

KINDS = ("dinogan", "patchgan", "stylegan")


def build_discriminator(kind: str, image_size: int, weights: str | Path = "hub") -> nn.Module:
    """A discriminator for images (B,3,image_size,image_size) in [-1,1].

    ``parameters()`` and ``state_dict()`` hold what is trained and nothing else: the frozen backbone
    of "dinogan" is outside of both, though it moves with the module.

    Args:
        kind: "dinogan", "patchgan" or "stylegan".
        image_size: side of the images; "dinogan" brings any to 224.
        weights: of the frozen backbone of "dinogan", the only one that has any: "hub", the path of
            Meta's or timm's file, or "none" for random ones, which is for trials of the machinery.

    Raises:
        ConfigError: there is no such kind, or the images are too small for it.
        WeightsError: the backbone's weights can't be found or are of another model.
    """
    if kind == "dinogan":
        return DinoDiscriminator(weights)
    if kind == "patchgan":
        return PatchGAN(image_size)
    if kind == "stylegan":
        return StyleGANDiscriminator(image_size)
    raise ConfigError(f"the discriminator must be one of {', '.join(KINDS)}, got '{kind}'")
