"""The network as a generator: its loss on raw latents, and sampling of raw latents."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from vfmtok.errors import ConfigError
from vfmtok.generators.counter_random import Draws
from vfmtok.generators.diffusion.config import DiTConfig, FlowSampling, TokenFlowSampling, WideHeadSampling
from vfmtok.generators.diffusion.flow import flow_loss, training_times
from vfmtok.generators.diffusion.guidance import FlowGuidance
from vfmtok.generators.diffusion.image_features import ImageFeatures
from vfmtok.generators.diffusion.network import Network
from vfmtok.generators.diffusion.released import fields_of_released
from vfmtok.generators.diffusion.sampling import generate_latents
from vfmtok.layers.precision import autocast

GOLDEN_RATIO = 0.6180339887498949
SPREAD = (0.5, 2.0)  # where the standard deviation of a batch of normalised latents is


class DiT(Network):
    """See ``network``. Raw latents are in the tokenizer's units; ``statistics`` normalises them, here and nowhere else.

    For times that change with the step, the training loop sets ``step``, the number of the step from 0.
    """

    fields_of_released = staticmethod(fields_of_released)
    step = 0
    precision = "none"
    guided_by: str | None = None
    spread: Tensor | None = None  # of the last batch, see ``observed``

    def __init__(self, config: DiTConfig):
        super().__init__(config)
        self.features: ImageFeatures | None = None  # of a training that needs them

    @property
    def sampling(self) -> type[FlowSampling]:
        """The class of its sampling settings, with the defaults of its publication."""
        if self.config.token_dim is not None:
            return TokenFlowSampling
        return FlowSampling if self.config.head_width is None else WideHeadSampling

    @property
    def normalised(self) -> str:
        """By which statistics of the training data's latents: per "channel", per "position", or "none"."""
        return self.config.normalised

    def use_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Normalise by these, (C,1,1) or (C,S,S), in the tokenizer's own units. Checkpoints carry them."""
        self.statistics.set(mean, std, self.config.multiplier)

    @property
    def latent_statistics(self) -> tuple[Tensor, Tensor] | None:
        """(C,S,S) each: what it subtracts from raw latents, and divides by. None where it does not know: published
        files of weights, and so ``to_released``, leave it out."""
        if self.normalised != "none" and not self.statistics.known:
            return None
        return self.statistics.mean, self.statistics.std / self.statistics.multiplier

    def use_precision(self, precision: str) -> None:
        """Sample under autocast of "bf16" or "fp16", the weights in float32, as was published; or not ("none")."""
        self.precision = precision

    def use_guide(self, weaker: "DiT", name: str) -> None:
        """Autoguidance by a weaker model of the same latents and classes, where ``cfg_weaker`` is its ``name``."""
        self._guide, self.guided_by = [weaker], name  # in a list: it is no part of this model

    def observed(self) -> dict[str, Tensor]:
        """Of the last batch: "latents/std", the standard deviation of the normalised latents, and "latents/outside", 1
        where it is not in [0.5,2]: normalised by statistics of other latents, or not once."""
        if self.spread is None:
            return {}
        outside = ((self.spread < SPREAD[0]) | (self.spread > SPREAD[1])).float()
        return {"latents/std": self.spread, "latents/outside": outside}

    def decayed(self) -> set[str]:
        """Names of the parameters that weight decay applies to: those of linear layers and convolutions."""
        kinds = torch.nn.Linear | torch.nn.Conv2d
        return {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, kinds)}

    @property
    def learns_from_images(self) -> bool:
        """As its configuration says: it has a class token, or is aligned."""
        return self.config.learns_from_images

    def begin_run(self, steps: int) -> None:
        """A training follows: build the encoder whose features it needs, if any. Raises ConfigError, WeightsError."""
        if self.learns_from_images:
            self.features = ImageFeatures(self.config).to(self.patches.weight.device)

    def loss(
        self, code: Tensor, labels: Tensor, draws: Draws | None = None, images: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Raw latents (B,C,S,S), labels (B,) int64 -> the weighted means of ``flow_loss``'s terms over the batch.

        In training mode ``label_dropout_p`` of the labels are dropped. Times, noise and that by ``draws``, or by
        PyTorch's generator without them; in eval mode, by ``draws``, the times of samples 0, 1, ... are evenly spread.

        With ``learns_from_images``, ``images`` (B,3,S,S) uint8 are those of the latents. Raises ConfigError without.
        """
        latents = self.statistics.normalise(code)  # (B,C,S,S)
        # With statistics the multiplier's part is meant; without them it alone makes them what they are.
        self.spread = latents.detach().std() / (1 if self.normalised == "none" else self.config.multiplier)
        if draws is None:
            chance = torch.rand(len(code), 2, device=code.device)  # (B,2)
            noise = torch.randn_like(latents)
        else:
            chance = draws.uniform("noise levels and labels", 2)  # (B,2)
            noise = draws.normal("noise", latents[0].numel()).view_as(latents)
        uniform = chance[:, 0]  # (B,)
        if self.training:
            labels = torch.where(chance[:, 1] < self.config.label_dropout_p, self.null_class, labels)
        elif draws is not None:
            uniform = ((draws.samples % 2**20).double() * GOLDEN_RATIO + 0.5).frac().float()
        step = self.step if self.training else 0  # held-out times are the same at every step
        times = training_times(uniform, self.config, step)  # (B,)
        loss = flow_loss(self, latents, labels, times, noise, **self._learned_of(images, draws))
        return {name: term.mean() for name, term in loss.terms.items()}

    def pass_over(self, code: Tensor, draws: Draws) -> None:
        """Raw latents (B,C,S,S), normalised and half way to noise, which is a function of the sample, without a class.

        Of a class token nothing is known but the noise.
        """
        latents = self.statistics.normalise(code)  # (B,C,S,S)
        noise, width = draws.normal("noise", latents[0].numel()).view_as(latents), self.config.token_dim
        token = None if width is None else 0.5 * draws.normal("class token", width)  # (B,Z)
        labels = torch.full((len(code),), self.null_class, device=code.device)
        half = torch.full((len(code),), 0.5, device=code.device)
        self(0.5 * latents + 0.5 * noise, half, labels, token)

    @property
    def image_tokens(self) -> int:
        """How many tokens of a block's output, the last, are the image's: the class token is the first."""
        return self.config.side**2

    def _learned_of(self, images: Tensor | None, draws: Draws | None) -> dict[str, Tensor]:
        """What ``flow_loss`` takes of images (B,3,S,S) uint8: class token, its noise, features to be aligned with."""
        if not self.learns_from_images:
            return {}
        if images is None or self.features is None:
            raise ConfigError("this generator learns from images besides their latents: a training hands them over")
        features, found = self.features(images), {}  # (B,1+N,Z)
        if self.config.token_dim is not None:
            token = features[:, 0]  # (B,Z)
            noise = torch.randn_like(token) if draws is None else draws.normal("class token", token.shape[1])
            found |= {"token": token, "token_noise": noise}
        if self.config.align_dims:
            target = features if self.config.token_dim is not None else features[:, 1:]  # (B,T,Z)
            found["targets"] = [target] * len(self.config.align_dims)
        return found

    def sample(
        self,
        labels: Tensor,
        *,
        seed: int = 0,
        sample_indices: Tensor | None = None,
        compile: bool = False,
        **settings: Any,
    ) -> Tensor:
        """labels (B,) -> raw latents (B,C,S,S) float32: see ``generate_latents`` and ``FlowGuidance``."""
        chosen = self.sampling(**settings)
        if chosen.cfg_weaker is not None and chosen.cfg_weaker != self.guided_by:
            raise ConfigError(f"cfg_weaker is {chosen.cfg_weaker}, the generator that is there is {self.guided_by}")
        weaker = self._guide[0] if chosen.cfg_weaker is not None else None
        guidance = FlowGuidance(
            chosen.cfg_scale, chosen.cfg_low, chosen.cfg_high, chosen.cfg_channels, chosen.cfg_token_scale, weaker
        )
        device = self.patches.weight.device
        with contextlib.nullcontext() if self.precision == "none" else autocast(self.precision, device):
            return generate_latents(
                self, labels, chosen.method, chosen.steps, chosen.shift, chosen.last, guidance,
                seed=seed, sample_indices=sample_indices, compile=compile,
            )  # fmt: skip
