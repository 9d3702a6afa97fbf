"""The network as a generator: its loss on raw latents, and sampling of raw latents."""

from typing import Any

import torch
from torch import Tensor

from vfmtok.errors import ConfigError
from vfmtok.generators.counter_random import Draws
from vfmtok.generators.diffusion.config import FlowSampling, TokenFlowSampling, WideHeadSampling
from vfmtok.generators.diffusion.flow import flow_loss, training_times
from vfmtok.generators.diffusion.guidance import FlowGuidance
from vfmtok.generators.diffusion.network import Network
from vfmtok.generators.diffusion.released import fields_of_released
from vfmtok.generators.diffusion.sampling import generate_latents

GOLDEN_RATIO = 0.6180339887498949
SPREAD = (0.5, 2.0)  # where the standard deviation of a batch of normalised latents is


class DiT(Network):
    """See ``network``. Raw latents are in the tokenizer's units; ``statistics`` normalises them, here and nowhere else.

    For times that change with the step, the training loop sets ``step``, the number of the step from 0.
    """

    fields_of_released = staticmethod(fields_of_released)
    step = 0
    guided_by: str | None = None
    spread: Tensor | None = None  # of the last batch, see ``observed``

    @property
    def sampling(self) -> type[FlowSampling]:
        """The class of its sampling settings, with the defaults of its publication."""
        if self.config.token_dim is not None:
            return TokenFlowSampling
        return FlowSampling if self.config.head_width is None else WideHeadSampling

    @property
    def normalised(self) -> str:
        """By which statistics of the training data's latents: per "channel", or per "position"."""
        return self.config.normalised

    @torch.no_grad()
    def use_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Normalise by these, (C,1,1) or (C,S,S), in the tokenizer's own units. Checkpoints carry them."""
        self.statistics.mean.copy_(mean.expand(self.code.shape))
        self.statistics.std.copy_(std.expand(self.code.shape))

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

    def loss(self, code: Tensor, labels: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """Raw latents (B,C,S,S), labels (B,) int64 -> the weighted means of ``flow_loss``'s terms over the batch.

        In training mode ``label_dropout_p`` of the labels are dropped. Times, noise and that by ``draws``, or by
        PyTorch's generator without them; in eval mode, by ``draws``, the times of samples 0, 1, ... are evenly spread.
        """
        latents = self.statistics.normalise(code)  # (B,C,S,S)
        self.spread = latents.detach().std()
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
        loss = flow_loss(self, latents, labels, training_times(uniform, self.config, step), noise)
        return {name: term.mean() for name, term in loss.terms.items()}

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
        return generate_latents(
            self, labels, chosen.method, chosen.steps, chosen.shift, chosen.last, guidance,
            seed=seed, sample_indices=sample_indices, compile=compile,
        )  # fmt: skip
