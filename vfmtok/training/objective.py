"""What the tokenizer minimises, and what its discriminator does.

Shapes: B batch, S image side.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vfmtok.losses.adversarial import LeCam, adaptive_weight, discriminator_loss, generator_loss
from vfmtok.losses.feature import feature_loss
from vfmtok.losses.perceptual import LPIPS, EncoderPerceptual
from vfmtok.losses.reconstruction import pixel_loss
from vfmtok.tokenizers.vfmtok.model import TokenizerOutput, VFMTok
from vfmtok.training.recipe import AdversarialConfig, LossConfig


def build_perceptual(config: LossConfig, tokenizer: VFMTok) -> nn.Module | None:
    """The perceptual distance of the recipe. Raises WeightsError if its network can't be had."""
    if config.perceptual == "none" or config.perceptual_weight == 0:
        return None
    if config.perceptual == "encoder":
        return EncoderPerceptual(tokenizer.encoder)
    return LPIPS(config.perceptual.removeprefix("lpips-"), config.perceptual_weights)


def perceptual_distance(perceptual: nn.Module, images: Tensor, out: TokenizerOutput) -> Tensor:
    """The distance of images (B,3,S,S) in [-1,1] and what the tokenizer made of them: a float32 scalar."""
    if isinstance(perceptual, EncoderPerceptual):  # the tokenizer's pass has the features of the images
        return perceptual(out.reconstruction, images, out.features)
    return perceptual(out.reconstruction, images)


class TokenizerObjective:
    """Weighted terms by name; their sum is the loss.

    Args:
        perceptual: (reconstruction, target) -> distance, or None.
        discriminator: the bare module, or None. Here it is a fixed judge: it gets no gradient.
    """

    def __init__(
        self,
        loss: LossConfig,
        adversarial: AdversarialConfig,
        tokenizer: VFMTok,
        perceptual: nn.Module | None,
        discriminator: nn.Module | None,
    ):
        self.loss, self.adversarial = loss, adversarial
        self.perceptual, self.discriminator = perceptual, discriminator
        self._last_layer = tokenizer.pixel_decoder.conv_out.weight

    def __call__(self, images: Tensor, out: TokenizerOutput, with_discriminator: bool) -> dict[str, Tensor]:
        """images (B,3,S,S) in [-1,1] and what the tokenizer made of them -> float32 scalars."""
        config = self.loss
        terms = {"pixel": config.pixel_weight * pixel_loss(out.reconstruction, images, config.pixel)}
        if self.perceptual is not None:
            terms["perceptual"] = config.perceptual_weight * perceptual_distance(self.perceptual, images, out)
        if out.feature_reconstruction is not None:
            terms["feature"] = config.feature_weight * feature_loss(out.feature_reconstruction, out.feature_target)
        terms |= {name: config.codebook_weight * value for name, value in out.losses.items()}
        if with_discriminator and self.discriminator is not None:
            with no_gradient_for(self.discriminator):
                judged = generator_loss(self.discriminator(out.reconstruction), self.adversarial.generator_loss)
            weight = self.adversarial.weight
            if self.adversarial.adaptive_weight:
                seen = terms["pixel"] + terms.get("perceptual", 0)
                weight = weight * adaptive_weight(seen, judged, self._last_layer)
            terms["adversarial"] = weight * judged
        return terms


class DiscriminatorPass(nn.Module):
    """The discriminator on real and on reconstructed images in one forward pass, as DDP wants it."""

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,3,S,S) both -> their logits."""
        return self.discriminator(real), self.discriminator(fake)


def discriminator_terms(
    config: AdversarialConfig, real_logits: Tensor, fake_logits: Tensor, lecam: LeCam | None
) -> dict[str, Tensor]:
    """Weighted terms of the discriminator's loss by name."""
    terms = {"discriminator": discriminator_loss(real_logits, fake_logits, config.loss)}
    if lecam is not None:
        terms["lecam"] = config.lecam_weight * lecam(real_logits, fake_logits)
    return terms


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


def checkpoint_activations(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    """Let every submodule of these kinds compute its activations again in the backward pass.

    Returns how many there are. Names of parameters stay as they are.
    """
    chosen = [part for part in module.modules() if isinstance(part, kinds)]
    for part in chosen:
        part.forward = _recomputed(part.forward)
    return len(chosen)


def _recomputed(forward):
    def forward_again_in_backward(*args, **kwargs):
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return forward_again_in_backward
