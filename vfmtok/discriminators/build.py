"""The discriminators by the names of ``--disc-type``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from vfmtok.discriminators import dino
from vfmtok.discriminators.dino import DinoDiscriminator
from vfmtok.discriminators.multiscale_patchgan import MultiScalePatchGAN
from vfmtok.discriminators.patchgan import PatchGAN
from vfmtok.discriminators.stylegan import StyleGANDiscriminator
from vfmtok.errors import ConfigError

# (side of the images, frozen backbone's weights, how images are resized for it) -> module.
# AdversarialConfig.discriminator lists the same names.
DISCRIMINATORS: dict[str, Callable[[int, str | Path, str], nn.Module]] = {
    "dinogan": lambda image_size, weights, resize: DinoDiscriminator(weights),
    "patchgan": lambda image_size, weights, resize: PatchGAN(image_size),
    "stylegan": lambda image_size, weights, resize: StyleGANDiscriminator(image_size),
    "dinogan-vfmvae": lambda image_size, weights, resize: DinoDiscriminator(
        weights, replace(dino.VFMVAE, resize=resize)
    ),
    "multiscale-patchgan": lambda image_size, weights, resize: MultiScalePatchGAN(),
}


def build_discriminator(kind: str, image_size: int, weights: str | Path = "hub", resize: str = "bilinear") -> nn.Module:
    """A discriminator: images (B,3,image_size,image_size) in [-1,1] -> float32 logits of any shape, large for real, or
    a list of them, one of each scale.

    ``parameters()`` and ``state_dict()`` hold what is trained and nothing else: the frozen backbone
    of "dinogan" is outside of both, though it moves with the module. ``takes_any_size`` is True where images may also
    be smaller or larger; where there is ``read``, it also gives the maps behind the hidden layers.

    Args:
        kind: a name of ``DISCRIMINATORS``.
        image_size: side of the images; "dinogan" and "dinogan-vfmvae" bring any to 224.
        weights: of the frozen backbone of these two, the only ones that have any: "hub", the path of
            Meta's or timm's file, or "none" for random ones, which is for trials of the machinery.
        resize: "bilinear" or "bicubic", of "dinogan-vfmvae" alone.

    Raises:
        ConfigError: there is no such kind, or the images are too small for it.
        WeightsError: the backbone's weights can't be found or are of another model.
    """
    if kind not in DISCRIMINATORS:
        raise ConfigError(f"the discriminator must be one of {', '.join(DISCRIMINATORS)}, got '{kind}'")
    return DISCRIMINATORS[kind](image_size, weights, resize)
