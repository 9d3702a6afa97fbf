"""The discriminators beside a tokenizer: what they learn, and what the tokenizer learns from them.

Shapes: B batch, S image side.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vfmtok.discriminators.augment import DRAWS, Augmentation, augment
from vfmtok.errors import ConfigError
from vfmtok.generators.counter_random import Draws
from vfmtok.losses.adversarial import LeCam, Logits, discriminator_loss, feature_matching_loss, generator_loss
from vfmtok.training.loss_recipe import AdversarialConfig


@dataclass
class Adversary:
    """
    Attributes:
        prefix: of its names: "" of the first, "second_" of the second.
        config: its section of the recipe.
        discriminator: the bare module.
        both: a ``DiscriminatorPass``, perhaps in DDP; None before it is wrapped.
    """

    prefix: str
    config: AdversarialConfig
    discriminator: nn.Module
    lecam: LeCam | None = None
    both: nn.Module | None = None

    @property
    def name(self) -> str:
        """Of its part in checkpoints, of its optimizer and its loss."""
        return f"{self.prefix}discriminator"

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What is saved, by name."""
        found = {self.name: self.discriminator, f"{self.prefix}lecam": self.lecam}
        return {name: module for name, module in found.items() if module is not None}

    def check(self) -> None:
        """Raise ConfigError if the recipe wants of this discriminator what it has not."""
        wanted = self.config.feature_matching_weight
        if wanted and not hasattr(self.discriminator, "read"):
            raise ConfigError(
                f"{self.prefix}adversarial.feature_matching_weight needs a discriminator whose hidden maps are read "
                f"(multiscale-patchgan), got {self.config.discriminator}"
            )

    def terms(self, real: Logits, fake: Logits) -> dict[str, Tensor]:
        """Weighted terms of the discriminator's loss by name, of its logits of both kinds of images."""
        terms = {self.name: discriminator_loss(real, fake, self.config.loss)}
        if self.lecam is not None:
            terms[f"{self.prefix}lecam"] = self.config.lecam_weight * self.lecam(real, fake)
        return terms


class DiscriminatorPass(nn.Module):
    """A discriminator on real and on reconstructed images in one forward pass, as DDP wants it."""

    def __init__(self, adversary: Adversary):
        super().__init__()
        self.discriminator = adversary.discriminator
        self.prefix, self.augment = adversary.prefix, adversary.config.augment

    def forward(self, real: Tensor, fake: Tensor, draws: Draws | None = None) -> tuple[Logits, Logits]:
        """Images (B,3,S,S) both -> their logits. ``draws`` augment them, where the recipe wants it: apart."""
        if self.augment:
            real, fake = (
                augmented(images, draws, f"{self.prefix}{kind}") for kind, images in (("real", real), ("fake", fake))
            )
        return self.discriminator(real), self.discriminator(fake)


def against(adversary: Adversary, images: Tensor, reconstruction: Tensor, draws: Draws | None) -> dict[str, Tensor]:
    """What the tokenizer minimises, not yet weighted: "adversarial" and, where the recipe wants it, "feature_matching".

    Images (B,3,S,S) both. The discriminator gets no gradient.
    """
    config, discriminator = adversary.config, adversary.discriminator
    if config.augment:  # alike, or hidden maps could not be compared
        images, reconstruction = (
            augmented(pixels, draws, f"{adversary.prefix}generator") for pixels in (images, reconstruction)
        )
    with no_gradient_for(discriminator):
        if not config.feature_matching_weight:
            return {"adversarial": generator_loss(discriminator(reconstruction), config.generator_loss)}
        fake = discriminator.read(reconstruction)
        with torch.no_grad():
            real = discriminator.read(images)
    return {
        "adversarial": generator_loss([scale.logits for scale in fake], config.generator_loss),
        "feature_matching": feature_matching_loss(
            [scale.features for scale in real], [scale.features for scale in fake]
        ),
    }


def augmented(images: Tensor, draws: Draws | None, purpose: str) -> Tensor:
    """images (B,3,S,S) in [-1,1], each by numbers of its own. Raises ValueError without ``draws``."""
    if draws is None:
        raise ValueError("a discriminator with adversarial.augment needs random numbers: draws")
    return augment(images, Augmentation.of(draws.uniform(f"augment {purpose}", DRAWS), *images.shape[-2:]))


@contextmanager
def no_gradient_for(module: nn.Module) -> Iterator[None]:
    """Gradients flow through ``module`` to its input and none to its parameters."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
