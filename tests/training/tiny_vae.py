"""A continuous tokenizer that offers every loss its input: patches of 4x4 px to a normal distribution of latents, and
back by one convolution, with a smaller image on the way."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from vfmtok.code import Latents
from vfmtok.errors import ConfigError
from vfmtok.families import Family
from vfmtok.tokenizers.contract import to_pixels


@dataclass(frozen=True)
class TinyVAEConfig:
    kind: Literal["tiny_vae"] = "tiny_vae"
    image_size: int = 32
    channels: int = 4
    projects: bool = True

    @property
    def code(self) -> Latents:
        return Latents((self.channels, self.image_size // 4, self.image_size // 4))


class TinyVAE(nn.Module):
    frozen_parts = ()
    recomputed = ()
    encode_draws = takes_transformations = True
    pyramid_sides = (16,)

    def __init__(self, config: TinyVAEConfig):
        super().__init__()
        self.config, self.code = config, config.code
        self.features = nn.Conv2d(3, 6, 4, 4).requires_grad_(False)  # the encoder
        self.to_moments = nn.Conv2d(6, 2 * config.channels, 1)
        self.projection = nn.Conv2d(config.channels, 6, 1, bias=False) if config.projects else None
        self.grow = nn.ConvTranspose2d(config.channels, 8, 2, 2)
        self.to_small_image = nn.Conv2d(8, 3, 1)
        self.to_image = nn.ConvTranspose2d(8, 3, 2, 2)

    @property
    def device(self) -> torch.device:
        return self.to_image.weight.device

    @property
    def last_layer(self) -> torch.Tensor:
        return self.to_image.weight

    @property
    def latent_layer(self) -> torch.Tensor:
        return self.to_moments.weight

    @property
    def loss_inputs(self) -> tuple[str, ...]:
        return ("posterior", "pyramid") + (("projected_latents", "alignment_features") if self.config.projects else ())

    def check_scale(self, scale: float) -> None:
        if (self.config.image_size * scale) % 8:
            raise ConfigError(f"images of {self.config.image_size * scale:g} px are no whole patches")

    def encode(self, images, draws=None, prior_scale=1.0):
        small = F.interpolate(images, scale_factor=prior_scale, mode="bilinear", antialias=True)
        features = self.features(small.float())
        mean, logvar = self.to_moments(features).chunk(2, dim=1)
        noise = 0 if draws is None else draws.normal("posterior", mean[0].numel()).view_as(mean)
        latents = mean + (0.5 * logvar).exp() * noise if draws is not None else mean
        return SimpleNamespace(
            latents=latents, posterior=SimpleNamespace(mean=mean, logvar=logvar), losses={}, features=features
        )

    def decode(self, code):
        return self.to_image(self.grow(code).relu())

    @torch.no_grad()
    def decode_to_uint8(self, code, size=256):
        return to_pixels(self.decode(code), size)

    def forward(self, images, transformation=None, draws=None):
        encoding = self.encode(images, draws, 1.0 if transformation is None else transformation.prior_scale)
        latents = encoding.latents if transformation is None else transformation.of_latents(encoding.latents)
        grown = self.grow(latents).relu()
        return SimpleNamespace(
            reconstruction=self.to_image(grown),
            pyramid={16: self.to_small_image(grown)},
            posterior=encoding.posterior,
            projected_latents=None if self.projection is None else self.projection(encoding.latents),
            alignment_features=encoding.features,
            losses={},
        )


FAMILIES = {"tiny_vae": Family(TinyVAEConfig, "tiny_vae:TinyVAE")}
