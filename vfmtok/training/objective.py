"""What the tokenizer minimises, and what its discriminator does.

Shapes: B batch, S image side.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vfmtok.config import closest_match
from vfmtok.encoders import build_encoder
from vfmtok.errors import ConfigError, SharedError
from vfmtok.losses.adversarial import LeCam, adaptive_weight, discriminator_loss, generator_loss
from vfmtok.losses.feature import feature_loss
from vfmtok.losses.perceptual import LPIPS, EncoderPerceptual
from vfmtok.losses.reconstruction import pixel_loss
from vfmtok.tokenizers.contract import Tokenizer, TokenizerOutput
from vfmtok.training.recipe import AdversarialConfig, LossConfig, TermConfig

Loss = Callable[[Tensor, TokenizerOutput], Tensor | dict[str, Tensor] | None]

# Further losses that a recipe may name in ``loss.terms``: (images (B,3,S,S) in [-1,1], what the tokenizer made of them)
# -> a float32 scalar, or several by name, or None where the tokenizer has not what it compares.
TERMS: dict[str, Loss] = {
    "pixel-l1": lambda images, out: pixel_loss(out.reconstruction, images, "l1"),
    "pixel-l2": lambda images, out: pixel_loss(out.reconstruction, images, "l2"),
}


@dataclass(frozen=True)
class Term:
    """A row of the objective.

    Attributes:
        function: see ``TERMS``.
        weight: that its value is multiplied by.
        first_step, last_step: that it takes part in, from 0; both included, None without an end.
        first_image, last_image: likewise, by the images that the run had seen before the step.
        balance: (the terms before it, its value) -> a factor of the weight.
    """

    name: str
    function: Loss
    weight: float = 1.0
    first_step: int = 0
    last_step: int | None = None
    first_image: int = 0
    last_image: int | None = None
    balance: Callable[[dict[str, Tensor], Tensor], Tensor] | None = None

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

    def values(self, images: Tensor, out: TokenizerOutput, before: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted, by name; none where the function has nothing to compare."""
        found = self.function(images, out)
        if found is None:
            return {}
        if isinstance(found, dict):
            return {name: self.weight * value for name, value in found.items()}
        weight = self.weight if self.balance is None else self.weight * self.balance(before, found)
        return {self.name: weight * found}


def build_perceptual(config: LossConfig, tokenizer: Tokenizer) -> nn.Module | None:
    """The perceptual distance of the recipe. Raises WeightsError if its network can't be had."""
    if config.perceptual == "none" or config.perceptual_weight == 0:
        return None
    if config.perceptual_encoder is not None:
        return EncoderPerceptual(build_encoder(config.perceptual_encoder), is_tokenizers=False)
    if config.perceptual == "encoder":
        if "encoder" not in tokenizer.frozen_parts:
            raise ConfigError("loss.perceptual: encoder needs a tokenizer with a frozen encoder")
        return EncoderPerceptual(tokenizer.encoder)
    return LPIPS(config.perceptual.removeprefix("lpips-"), config.perceptual_weights)


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

    Attributes:
        terms: the rows, in the order in which they are computed and summed. The adversarial one is the last: what its
            adaptive weight is balanced with comes before it.
        notes: for people: rows of ``loss.terms`` that change nothing, since this run has no such loss.

    Raises:
        ConfigError: ``loss.terms`` names a loss that is unknown, or ``loss.codebook_weight`` has nothing to weight.
    """

    def __init__(
        self,
        loss: LossConfig,
        adversarial: AdversarialConfig,
        tokenizer: Tokenizer,
        perceptual: nn.Module | None,
        discriminator: nn.Module | None,
        loss_scale: float = 1.0,
    ):
        rows = [
            Term("pixel", lambda images, out: pixel_loss(out.reconstruction, images, loss.pixel), loss.pixel_weight)
        ]
        if perceptual is not None:
            rows.append(Term("perceptual", partial(perceptual_distance, perceptual), loss.perceptual_weight))
        rows.append(Term("feature", _feature_loss, loss.feature_weight))
        if getattr(tokenizer, "makes_losses", True):
            rows.append(Term("codebook", lambda images, out: out.losses, loss.codebook_weight))
        elif loss.codebook_weight != LossConfig.codebook_weight:
            raise ConfigError("loss.codebook_weight: this tokenizer has no losses of its own that it could weight")
        if discriminator is not None:
            balance = None
            if adversarial.adaptive_weight:
                balance = partial(_adaptive_weight, tokenizer.last_layer, loss_scale)
            judged = partial(_judged, discriminator, adversarial.generator_loss)
            rows.append(Term("adversarial", judged, adversarial.weight, first_step=adversarial.start, balance=balance))
        self.terms, self.notes = _as_configured(rows, loss.terms)

    @property
    def may_leave_parts_out(self) -> bool:
        """Whether there may be steps without a gradient for a part that has one in others. The adversarial loss comes
        through the reconstruction, and the discriminator learns by itself."""
        return any(term.is_limited for term in self.terms if term.name != "adversarial")

    def adversarial_is_over(self, step: int, images_seen: int) -> bool:
        """Whether the tokenizer no longer sees the discriminator."""
        return any(term.is_over(step, images_seen) for term in self.terms if term.name == "adversarial")

    def __call__(
        self,
        images: Tensor,
        out: TokenizerOutput,
        with_discriminator: bool = True,
        *,
        step: int | None = None,
        images_seen: int = 0,
    ) -> dict[str, Tensor]:
        """images (B,3,S,S) in [-1,1] and what the tokenizer made of them -> float32 scalars.

        Args:
            with_discriminator: False leaves the adversarial term out.
            step: of the training, with the images it had seen before; None takes every term, whatever its steps.
        """
        values: dict[str, Tensor] = {}
        for term in self.terms:
            left_out = term.name == "adversarial" and not with_discriminator
            if not left_out and (step is None or term.takes_part(step, images_seen)):
                values |= term.values(images, out, values)
        return values


# Rows that a run may have or not, by other settings of its recipe.
OPTIONAL = ("perceptual", "codebook", "adversarial")


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
        row = by_name.get(change.name) or Term(change.name, TERMS[change.name])
        by_name[change.name] = dataclasses.replace(row, **change.given())
    return sorted(by_name.values(), key=lambda row: row.name == "adversarial"), notes


def _feature_loss(images: Tensor, out: TokenizerOutput) -> Tensor | None:
    if getattr(out, "feature_reconstruction", None) is None:
        return None
    return feature_loss(out.feature_reconstruction, out.feature_target)


def _judged(discriminator: nn.Module, kind: str, images: Tensor, out: TokenizerOutput) -> Tensor:
    with no_gradient_for(discriminator):
        return generator_loss(discriminator(out.reconstruction), kind)


def _adaptive_weight(last_layer: Tensor, loss_scale: float, before: dict[str, Tensor], judged: Tensor) -> Tensor:
    seen = [value for name, value in before.items() if name in ("pixel", "perceptual", *TERMS)]
    if not seen:
        raise SharedError(
            "adversarial.adaptive_weight balances with the pixel and perceptual losses: at this step none takes part"
        )
    return adaptive_weight(sum(seen), judged, last_layer, loss_scale)


@dataclass
class Made:
    """What a pass made of images, without gradients."""

    reconstruction: Tensor  # (B,3,S,S)
    ids: Tensor | None  # (B,K) int64
    latents: tuple[Tensor, ...] | None  # (B,K,E) of each segment


class TokenizerPass(nn.Module):
    """A tokenizer's losses as a forward pass, as DDP wants it: what it returns is all that gradients come from, so that
    DDP can tell parts without any in a step from the others."""

    def __init__(self, tokenizer: Tokenizer, objective: TokenizerObjective):
        super().__init__()
        self.tokenizer, self.objective = tokenizer, objective

    def forward(self, images: Tensor, step: int, images_seen: int) -> tuple[dict[str, Tensor], Made]:
        """images (B,3,S,S) in [-1,1] -> float32 scalars by name, to be summed, and what was made.

        Raises SharedError if none of the losses that take part in this step has a gradient.
        """
        out = self.tokenizer(images)
        terms = self.objective(images, out, step=step, images_seen=images_seen)
        if not any(term.requires_grad for term in terms.values()):
            found = f"only {', '.join(terms)}" if terms else "none"
            raise SharedError(f"step {step} has no loss for what trains ({found} takes part): see loss.terms and train")
        latents = getattr(out, "latents", None)
        if latents is not None:
            latents = tuple(part.detach() for part in (latents if isinstance(latents, tuple) else (latents,)))
        return terms, Made(out.reconstruction.detach(), getattr(out, "ids", None), latents)


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
