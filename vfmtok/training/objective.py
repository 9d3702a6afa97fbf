"""What the tokenizer minimises, and what its discriminator does.

Shapes: B batch, S image side.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from vfmtok.config import closest_match
from vfmtok.encoders import build_encoder
from vfmtok.errors import ConfigError, SharedError
from vfmtok.generators.counter_random import Draws
from vfmtok.losses.adversarial import adaptive_weight
from vfmtok.losses.alignment import alignment_loss
from vfmtok.losses.feature import feature_loss
from vfmtok.losses.kl import kl_loss
from vfmtok.losses.perceptual import LPIPS, EncoderPerceptual
from vfmtok.losses.reconstruction import pixel_loss, small_image_loss
from vfmtok.losses.structural import ssim_loss
from vfmtok.tokenizers.contract import Tokenizer, TokenizerOutput
from vfmtok.training.adversaries import Adversary, against
from vfmtok.training.loss_recipe import AdversarialConfig, AlignmentConfig, LossConfig, TermConfig

Loss = Callable[[Tensor, TokenizerOutput], Tensor | dict[str, Tensor] | None]
PYRAMID_SIDES = (4, 8, 16, 32, 64, 128, 256)  # px, of smaller images that may be compared


@dataclass(frozen=True)
class Term:
    """A row of the objective.

    Attributes:
        function: (images (B,3,S,S) in [-1,1], what the tokenizer made of them) -> a float32 scalar, or several by name,
            or None where the tokenizer has not what it compares.
        weight: that its value is multiplied by.
        first_step, last_step: that it takes part in, from 0; both included, None without an end.
        first_image, last_image: likewise, by the images that the run had seen before the step.
        balance: (the losses before it that compare images, its value) -> a factor of the weight.
        compares_images: it says how far the reconstruction is from the image.
        inputs: fields of a pass that it needs and not every tokenizer has, see ``Tokenizer.loss_inputs``.
        adversary: whose discriminator the row is about, instead of a function.
    """

    name: str
    function: Loss | None
    weight: float = 1.0
    first_step: int = 0
    last_step: int | None = None
    first_image: int = 0
    last_image: int | None = None
    balance: Callable[[dict[str, Tensor], Tensor], Tensor] | None = None
    compares_images: bool = False
    inputs: tuple[str, ...] = ()
    adversary: Adversary | None = None

    def takes_part(self, step: int, images_seen: int) -> bool:
        has_begun = self.first_step <= step and self.first_image <= images_seen
        return has_begun and not self.is_over(step, images_seen)

    def is_over(self, step: int, images_seen: int) -> bool:
        after_steps = self.last_step is not None and step > self.last_step
        return after_steps or (self.last_image is not None and images_seen > self.last_image)

    @property
    def is_limited(self) -> bool:
        """Whether it takes no part in some steps."""
        return (self.first_step, self.last_step, self.first_image, self.last_image) != (0, None, 0, None)

    def values(
        self, images: Tensor, out: TokenizerOutput, compared: dict[str, Tensor], draws: Draws | None
    ) -> dict[str, Tensor]:
        """Weighted, by name; none where the function has nothing to compare.

        Args:
            compared: the losses before it that compare images.
            draws: random numbers of these images.
        """
        if self.adversary is not None:
            return self._against(images, out, compared, draws)
        found = self.function(images, out)
        if found is None:
            return {}
        if isinstance(found, dict):
            return {name: self.weight * value for name, value in found.items()}
        return {self.name: self._balanced(compared, found) * found}

    def _against(
        self, images: Tensor, out: TokenizerOutput, compared: dict[str, Tensor], draws: Draws | None
    ) -> dict[str, Tensor]:
        found = against(self.adversary, images, out.reconstruction, draws)
        adversarial = found.pop("adversarial")
        matching = self.adversary.config.feature_matching_weight
        return {self.name: self._balanced(compared, adversarial) * adversarial} | {
            f"{self.adversary.prefix}{name}": matching * value for name, value in found.items()
        }

    def _balanced(self, compared: dict[str, Tensor], value: Tensor) -> float | Tensor:
        return self.weight if self.balance is None else self.weight * self.balance(compared, value)


def _kl(images: Tensor, out: TokenizerOutput) -> Tensor:
    return kl_loss(out.posterior.mean, out.posterior.logvar)


def _small_image(side: int, images: Tensor, out: TokenizerOutput) -> Tensor:
    return small_image_loss(out.pyramid[side], images)


# Further losses that a recipe may name in ``loss.terms``.
TERMS: dict[str, Term] = {
    term.name: term
    for term in (
        Term("pixel-l1", lambda images, out: pixel_loss(out.reconstruction, images, "l1"), compares_images=True),
        Term("pixel-l2", lambda images, out: pixel_loss(out.reconstruction, images, "l2"), compares_images=True),
        Term("ssim", lambda images, out: ssim_loss(out.reconstruction, images), compares_images=True),
        *(
            Term(f"multi-resolution-{side}", partial(_small_image, side), compares_images=True, inputs=("pyramid",))
            for side in PYRAMID_SIDES
        ),
        Term("kl", _kl, inputs=("posterior",)),
    )
}


def build_perceptual(config: LossConfig, tokenizer: Tokenizer, weights: bool = True) -> nn.Module | None:
    """The perceptual distance of the recipe. Raises WeightsError if its network can't be had.

    Args:
        weights: False leaves LPIPS without any, for who counts what it computes.
    """
    if config.perceptual == "none" or config.perceptual_weight == 0:
        return None
    if config.perceptual_encoder is not None:
        return EncoderPerceptual(build_encoder(config.perceptual_encoder), is_tokenizers=False)
    if config.perceptual == "encoder":
        if "encoder" not in tokenizer.frozen_parts:
            raise ConfigError("loss.perceptual: encoder needs a tokenizer with a frozen encoder")
        return EncoderPerceptual(tokenizer.encoder)
    network = config.perceptual.removeprefix("lpips-")
    return LPIPS(network, config.perceptual_weights) if weights else LPIPS.without_weights(network)


def perceptual_distance(perceptual: nn.Module, images: Tensor, out: TokenizerOutput) -> Tensor:
    """The distance of images (B,3,S,S) in [-1,1] and what the tokenizer made of them: a float32 scalar."""
    if isinstance(perceptual, EncoderPerceptual) and perceptual.is_tokenizers:  # whose pass may have the features
        return perceptual(out.reconstruction, images, getattr(out, "features", None))
    return perceptual(out.reconstruction, images)


class TokenizerObjective:
    """Weighted terms by name; their sum is the loss.

    Args:
        perceptual: (reconstruction, target) -> distance, or None.
        discriminator: the bare module, or None. Here it is fixed: it gets no gradient.
        loss_scale: of fp16, under which small gradients vanish: the adaptive weight's are taken of losses so scaled.
        second: a second adversary beside that discriminator.

    Attributes:
        terms: the rows, in the order in which they are computed and summed. The adversarial ones are the last: what
            their adaptive weights are balanced with comes before them.
        notes: for people: rows of ``loss.terms`` that change nothing, since this run has no such loss.

    Raises:
        ConfigError: the recipe names a loss that is unknown, or that this tokenizer has no input for, or
            ``loss.codebook_weight`` has nothing to weight.
    """

    def __init__(
        self,
        loss: LossConfig,
        adversarial: AdversarialConfig,
        tokenizer: Tokenizer,
        perceptual: nn.Module | None,
        discriminator: nn.Module | None,
        loss_scale: float = 1.0,
        second: Adversary | None = None,
    ):
        def pixel(images: Tensor, out: TokenizerOutput) -> Tensor:
            return pixel_loss(out.reconstruction, images, loss.pixel)

        rows = [Term("pixel", pixel, loss.pixel_weight, compares_images=True)]
        if perceptual is not None:
            distance = partial(perceptual_distance, perceptual)
            rows.append(Term("perceptual", distance, loss.perceptual_weight, compares_images=True))
        rows.append(Term("feature", _feature_loss, loss.feature_weight))
        if getattr(tokenizer, "makes_losses", True):
            rows.append(Term("codebook", lambda images, out: out.losses, loss.codebook_weight))
        elif loss.codebook_weight != LossConfig.codebook_weight:
            raise ConfigError("loss.codebook_weight: this tokenizer has no losses of its own that it could weight")
        if loss.alignment.weight:
            rows.append(_alignment_row(loss.alignment, tokenizer, loss_scale))
        first = None if discriminator is None else Adversary("", adversarial, discriminator)
        for adversary in (first, second):
            if adversary is not None:
                rows.append(_adversarial_row(adversary, tokenizer, loss_scale))
        self.terms, self.notes = _as_configured(rows, loss.terms)
        self._inputs = _inputs(self.terms, tokenizer)

    @property
    def may_leave_parts_out(self) -> bool:
        """Whether there may be steps without a gradient for a part that has one in others, or would with other losses.
        The adversarial losses come through the reconstruction, and discriminators learn by themselves."""
        limited = any(term.is_limited for term in self.terms if term.adversary is None)
        return limited or bool(self._inputs)

    def adversarial_is_over(self, step: int, images_seen: int, prefix: str = "") -> bool:
        """Whether the tokenizer no longer sees the discriminator, the second where ``prefix`` is "second_"."""
        return any(term.is_over(step, images_seen) for term in self.terms if term.name == f"{prefix}adversarial")

    def __call__(
        self,
        images: Tensor,
        out: TokenizerOutput,
        with_discriminator: bool = True,
        *,
        step: int | None = None,
        images_seen: int = 0,
        draws: Draws | None = None,
    ) -> dict[str, Tensor]:
        """images (B,3,S,S) in [-1,1] and what the tokenizer made of them -> float32 scalars.

        Args:
            with_discriminator: False leaves the adversarial terms out.
            step: of the training, with the images it had seen before; None takes every term, whatever its steps.
            draws: random numbers of these images, where discriminators see them augmented.
        """
        values: dict[str, Tensor] = {}
        compared: dict[str, Tensor] = {}
        for term in self.terms:
            left_out = term.adversary is not None and not with_discriminator
            if not left_out and (step is None or term.takes_part(step, images_seen)):
                found = term.values(images, out, compared, draws)
                values |= found
                if term.compares_images:
                    compared |= found
        return values

    @property
    def image_losses(self) -> tuple[str, ...]:
        """Names of the terms that say how far the reconstruction is from the image."""
        return tuple(term.name for term in self.terms if term.compares_images)


# Rows that a run may have or not, by other settings of its recipe.
OPTIONAL = ("perceptual", "codebook", "alignment", "adversarial", "second_adversarial")


def _as_configured(rows: list[Term], changes: tuple[TermConfig, ...]) -> tuple[list[Term], list[str]]:
    """The rows as the recipe changes them with the further ones it names, and notes of changes without effect."""
    by_name, notes = {row.name: row for row in rows}, []
    for change in changes:
        if change.name in OPTIONAL and change.name not in by_name:
            notes.append(f"loss.terms: '{change.name}' has no effect, since this run has no such loss")
            continue
        if change.name not in by_name and change.name not in TERMS:
            known = list(dict.fromkeys([*by_name, *OPTIONAL, *TERMS]))
            hint = closest_match(change.name, known)
            raise ConfigError(f"loss.terms: there is no '{change.name}'{hint}; there are {', '.join(known)}")
        row = by_name.get(change.name) or TERMS[change.name]
        by_name[change.name] = dataclasses.replace(row, **change.given())
    return sorted(by_name.values(), key=lambda row: (row.adversary is not None, row.balance is not None)), notes


def _inputs(rows: list[Term], tokenizer: Tokenizer) -> set[str]:
    """What passes of the tokenizer have for losses that this recipe has not, in every step.

    Raises ConfigError if a row needs what they have not.
    """
    has, sides = tuple(getattr(tokenizer, "loss_inputs", ())), tuple(getattr(tokenizer, "pyramid_sides", ()))
    for row in rows:
        missing = [name for name in row.inputs if name not in has]
        if missing:
            raise ConfigError(
                f"the loss '{row.name}' compares {' and '.join(missing)}, which a {tokenizer.config.kind} tokenizer of "
                "this configuration has not"
            )
        side = row.name.removeprefix("multi-resolution-")
        if side != row.name and int(side) not in sides:
            raise ConfigError(f"loss.terms: '{row.name}': the tokenizer makes images of {sides} px on the way")
    used = {name for row in rows for name in row.inputs}
    if sum("pyramid" in row.inputs for row in rows) < len(sides):
        used.discard("pyramid")
    return set(has) - used


def _alignment_row(config: AlignmentConfig, tokenizer: Tokenizer, loss_scale: float) -> Term:
    settings = {name: value for name, value in vars(config).items() if name not in ("weight", "adaptive")}
    balance = None
    if config.adaptive:
        layer = getattr(tokenizer, "latent_layer", None)
        if layer is None:
            raise ConfigError(f"loss.alignment: a {tokenizer.config.kind} tokenizer has no latents to align")
        if not layer.requires_grad:
            raise ConfigError(
                "loss.alignment.adaptive needs the layer of the latents, which is not among the parts to train"
            )
        balance = partial(_adaptive_weight, "loss.alignment.adaptive", layer, loss_scale, 1e8)

    def aligned(images: Tensor, out: TokenizerOutput) -> Tensor:
        return alignment_loss(out.projected_latents, out.alignment_features, **settings)

    return Term(
        "alignment", aligned, config.weight, balance=balance, inputs=("projected_latents", "alignment_features")
    )


def _adversarial_row(adversary: Adversary, tokenizer: Tokenizer, loss_scale: float) -> Term:
    config, name = adversary.config, f"{adversary.prefix}adversarial"
    balance = None
    if config.adaptive_weight:
        if not tokenizer.last_layer.requires_grad:
            raise ConfigError(f"{name}.adaptive_weight needs the last layer, which is not among the parts to train")
        balance = partial(_adaptive_weight, f"{name}.adaptive_weight", tokenizer.last_layer, loss_scale, 1e4)
    adversary.check()
    return Term(name, None, config.weight, first_step=config.start, balance=balance, adversary=adversary)


def _feature_loss(images: Tensor, out: TokenizerOutput) -> Tensor | None:
    if getattr(out, "feature_reconstruction", None) is None:
        return None
    return feature_loss(out.feature_reconstruction, out.feature_target)


def _adaptive_weight(
    setting: str, layer: Tensor, loss_scale: float, largest: float, compared: dict[str, Tensor], value: Tensor
) -> Tensor:
    if not compared:
        raise SharedError(
            f"{setting} balances with losses that compare images (pixel, perceptual, ...): at this step none takes part"
        )
    return adaptive_weight(sum(compared.values()), value, layer, loss_scale, largest)
