"""What every generator offers. The rest of the package asks for this, never for a family.

Shapes: B batch; a code is ids (B,K) int64 or latents (B,C,h,w), as ``generator.code`` says.
"""

from dataclasses import fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from vfmtok.code import Code
from vfmtok.generators.counter_random import Draws


class SamplingSettings(Protocol):
    """How codes are drawn: a frozen dataclass, whose fields are keyword arguments of the family's ``sample``.

    Defaults are those of the published evaluation; impossible values raise ConfigError where it is made. Names of
    fields that begin with ``cfg_`` are about guidance. A field's metadata may say for people what to call it
    ("label"), what it does ("help") and where it makes sense ("range": lowest, highest, step).
    """

    cfg_scale: float  # strength of guidance; 1 is none

    @property
    def guidance(self) -> str:
        """All that the cfg_ fields say, for names of results and folders: "no CFG", or "CFG 1.5" and what else."""


Settings = TypeVar("Settings", bound=SamplingSettings)


def at_scale(settings: Settings, scale: float) -> Settings:
    """The same at another guidance scale; at 1, without guidance, nothing is left of its other settings."""
    guiding = {f.name: f.default for f in fields(settings) if f.name.startswith("cfg_")} if scale == 1 else {}
    return replace(settings, **{**guiding, "cfg_scale": scale})


def changed(settings: SamplingSettings) -> list[str]:
    """What is not by default, guidance left out, which ``settings.guidance`` tells: ["steps 50", "method heun"]."""
    names = [field.name for field in fields(settings) if getattr(settings, field.name) != field.default]
    return [f"{name} {getattr(settings, name)}" for name in names if not name.startswith("cfg_")]


@runtime_checkable
class Generator(Protocol):
    """An ``nn.Module`` with these attributes.

    Attributes:
        config: the configuration, a dataclass with ``kind``, ``num_classes``, ``code``, and the class method
            ``fields_of_code(code)``: its fields that a tokenizer's code fixes. It may say ``cache_values``, the values
            that sampling an image keeps of earlier tokens, which `vfmtok info` shows, and ``learns_from_images``, as
            below, of which a study's steps depend.
        code: what it learns and samples.
        num_classes: labels are in [0,num_classes).
        null_class: the label that stands for no class.
        released: a ``NameMap``, where weights of this family were published.
        reported_parts: name -> children, where `vfmtok info` shows other parts than the children.
        fields_of_released: where that is so, fields of the configuration that published tensors tell.
        sampling: the class of its settings of ``sample`` (``SamplingSettings``).

    Optional: what a family offers of these is used where it matters, and nothing is missed without it.

    Attributes:
        held_out: a method (code, labels) -> {"loss": (B,) float64, ...}, what validation averages over samples, in eval
            mode; for ids in nats per token, to compare with frequencies. Without it: ``loss`` in eval mode.
        decayed: a method that names the parameters with weight decay. Without it: those with two axes or more.
        layers: an iterable of submodules, sharded (FSDP) one at a time. Without it: the model as one.
        sharded_methods: names of methods besides ``forward`` that compute with the weights outside of ``forward``;
            "loss" too, unless it calls the model itself, and so "sample".
        checkpoint_activations: settable: recompute activations in the backward pass.
        step: settable: the number of the training step, from 0, where ``loss`` depends on it.
        begin_run: a method (steps), called before a training of so many steps in all; raises ConfigError where what the
            generator changes over the steps does not fit them.
        normalised, use_statistics: of latents: per what ("channel", "position", "none") it wants their statistics, and
            a method (mean, std) that takes those of the training data, in the tokenizer's units, before the first step.
        latent_statistics: mean and standard deviation (C,h,w), in these units, by which it normalises; None if it was
            never given any, as files of published weights leave them out: then its samples can't be decoded.
        use_precision: a method ("none", "bf16" or "fp16") that says in which precision it samples, the weights staying
            float32. Without it, they are cast.
        observed: a method () -> {name: scalar} of what else ``loss`` saw of its last batch, for log and alarms.
        use_guide, guided_by: a method (generator, name) that lets a weaker one guide it, and that name, which its
            setting ``cfg_weaker`` has then.
        pass_over: a method (code, draws), in eval mode: a pass over a code (B,...) without a class, for who listens to
            ``layers``. Without it: ``loss`` of the null class.
        image_tokens: how many tokens of a layer's output, the last, are the image's. Without it: those of the ids.
        learns_from_images: whether ``loss`` wants the images that the code was made of, as ``images`` (B,3,S,S) uint8.
            ``begin_run`` then has built what it needs for that.
        fastest_attention: a method (device, dtype, batch) -> the name of an attention kernel, which ``use_attention``
            takes.
    """

    config: Any

    @property
    def sampling(self) -> type: ...

    @property
    def code(self) -> Code: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def null_class(self) -> int: ...

    def loss(self, code: Tensor, labels: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """Named float32 scalars, means over the batch, to be summed.

        ``draws`` gives all chance but the dropout masks inside layers, so that a sample trains alike in any batch.
        """

    def sample(
        self,
        labels: Tensor,
        *,
        seed: int = 0,
        sample_indices: Tensor | None = None,
        compile: bool = False,
        **settings: Any,
    ) -> Tensor:
        """Codes of new images of the classes ``labels`` (B,): sample n of a seed is the same in any batch.

        Args:
            compile: run its steps through ``torch.compile``.
            settings: fields of ``sampling``.
        """
