"""VFMAE (VFMTok2, arXiv 2605.18390): an image as a small grid of continuous region latents, and back.

image -> frozen encoder, class token joined to every cell -> region sampler -> bottleneck -> ViT decoder -> pixel
decoder -> image

A deterministic autoencoder: no codebook, no noise, no norm of the latents.

Shapes: B batch, S image side, K region tokens on a grid (h,w), D width, C latent channels, L levels, N cells and F
channels of a level.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vfmtok.code import Latents
from vfmtok.decoders.vqgan import PixelDecoder
from vfmtok.encoders import build_encoder
from vfmtok.errors import ConfigError
from vfmtok.layers.precision import full_float32
from vfmtok.layers.region_sampler import RegionSampler, SamplerLayer
from vfmtok.layers.residual import ResBlock
from vfmtok.layers.transformer import TransformerLayer
from vfmtok.tokenizers.contract import SamplingPoints, check_images, to_pixels
from vfmtok.tokenizers.vfmae.bottleneck import Bottleneck
from vfmtok.tokenizers.vfmae.config import VFMAEConfig
from vfmtok.tokenizers.vfmae.released import RELEASED
from vfmtok.tokenizers.vfmae.vit_decoder import ViTDecoder


@dataclass
class Encoding:
    """What ``encode`` finds on the way to the latents."""

    latents: Tensor  # (B,C,h,w) float32
    region_tokens: Tensor  # (B,K,D)
    features: list[Tensor]  # L x (B,N,F): the encoder's cells
    class_tokens: list[Tensor]  # L x (B,1,F), which joined these cells; empty without one
    losses: dict[str, Tensor]  # none: there is neither a codebook nor a posterior


@dataclass
class TokenizerOutput:
    """What training needs of one pass."""

    reconstruction: Tensor  # (B,3,S,S), nominally in [-1,1]
    feature_reconstruction: Tensor | None  # (B,1+N,F); None in eval mode or without the feature branch
    feature_target: Tensor  # (B,1+N,F): class token, if there is one, and cells of the last level
    features: list[Tensor]  # L x (B,N,F)
    latents: Tensor  # (B,C,h,w)
    losses: dict[str, Tensor]  # none


class VFMAE(nn.Module):
    """The tokenizer. Call ``eval()`` before decoding: in training mode the ViT decoder's dropout is on."""

    released = RELEASED  # its tensors' names in published files
    reported_parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "encoder": ("encoder",),
        "sampler": ("sampler",),
        "bottleneck": ("bottleneck",),
        "decoder": ("decoder",),
        "pixel_decoder": ("pixel_decoder",),
    }
    makes_losses = False
    recomputed = (SamplerLayer, TransformerLayer, ResBlock)  # where activations are recomputed in the backward pass

    def __init__(self, config: VFMAEConfig):
        super().__init__()
        self.encoder = build_encoder(config.encoder)
        has_one = getattr(self.encoder, "has_class_token", False)
        if config.class_token and not has_one:
            raise ConfigError(f"class_token: encoder '{config.encoder.name}' has none; leave it out or set it to false")
        joined = has_one if config.class_token is None else config.class_token
        self._config = dataclasses.replace(config, class_token=joined)
        grid, width = self.encoder.grids[-1], self.encoder.widths[-1]
        if grid[0] != grid[1]:
            raise ConfigError(f"encoder '{config.encoder.name}': the last level must be square, is {grid}")
        dim, channels, start = config.dim, config.latent_channels, config.initial_positions
        self.sampler = RegionSampler(config.sampler, dim, self.encoder.widths, self.encoder.grids, start, causal=False)
        self.bottleneck = Bottleneck(dim, channels, config.code.shape[1:])
        self.decoder = ViTDecoder(
            config.decoder,
            dim,
            channels=channels,
            num_tokens=config.sampler.num_tokens,
            image_grid=config.image_grid,
            feature_grid=grid[0],
            feature_dim=width,
            class_token=joined,
            initial_positions=start,
        )
        self.pixel_decoder = PixelDecoder(config.pixel_decoder, z_channels=dim)

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Parts that training leaves as they are, and that its checkpoints leave out."""
        return ("encoder",) if self._config.encoder.frozen else ()

    @property
    def config(self) -> VFMAEConfig:
        """The resolved configuration: with what the encoder filled in, its weights' hash included."""
        return dataclasses.replace(self._config, encoder=self.encoder.config)

    @property
    def code(self) -> Latents:
        """What ``encode`` makes and ``decode`` takes."""
        return self._config.code

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes the pixels, by whose gradients an adaptive weight balances losses."""
        return self.pixel_decoder.conv_out.weight

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.bottleneck.conv_out.weight.device

    def encode(self, images: Tensor) -> Encoding:
        """images (B,3,H,W) float in [-1,1], any size: the encoder resizes to its own square -> Encoding."""
        check_images(images)
        features, class_tokens = self._read(images)  # L x (B,N,F), L x (B,1,F)
        region_tokens = self.sampler(_joined(features, class_tokens))  # (B,K,D)
        return Encoding(self.bottleneck(region_tokens), region_tokens, features, class_tokens, {})

    def _read(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """images -> cells and class tokens of every level, none of the latter if they are not to join."""
        if not self._config.class_token:
            return self.encoder(images), []
        levels = self.encoder.with_class_token(images)  # L x (B,1+N,F)
        return [tokens[:, 1:] for tokens in levels], [tokens[:, :1] for tokens in levels]

    @property
    def has_sampling_points(self) -> bool:
        """Whether its region tokens read the image at points, not in windows."""
        return self.sampler.attention == "deformable"

    @torch.no_grad()
    def sampling_points(self, images: Tensor) -> list[SamplingPoints]:
        """Where region tokens read images (B,3,H,W) in [-1,1]: in the first, a middle and the last layer."""
        with full_float32(images.device.type):
            features = _joined(*self._read(images))
            return [SamplingPoints(*found) for found in self.sampler.points_of_layers(features)]

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B,C,h,w) -> images (B,3,S,S), unclamped, nominally in [-1,1]."""
        if latents.shape[1:] != self.code.shape or not latents.is_floating_point():
            wanted = ",".join(map(str, self.code.shape))
            raise ValueError(f"latents must be floats (B,{wanted}), got {tuple(latents.shape)} {latents.dtype}")
        image_map, _ = self.decoder(latents)  # (B,D,g,g)
        return self.pixel_decoder(image_map)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """``decode``, named."""
        return self.decode(latents)

    @torch.no_grad()
    def decode_to_uint8(self, latents: Tensor, size: int = 256) -> Tensor:
        """latents (B,C,h,w) -> pixels (B,size,size,3) uint8: bicubic to ``size``, x * 127.5 + 128, clamp, truncate."""
        return to_pixels(self.decode(latents), size)

    def forward(self, images: Tensor) -> TokenizerOutput:
        """images (B,3,S,S) in [-1,1] at ``config.image_size`` -> TokenizerOutput.

        The feature branch runs only in training mode.
        """
        check_images(images, self._config.image_size)
        encoding = self.encode(images)
        with_features = self.training and self._config.decoder.reconstruct_features
        image_map, features = self.decoder(encoding.latents, with_features)  # (B,D,g,g), (B,1+N,F)
        return TokenizerOutput(
            reconstruction=self.pixel_decoder(image_map),  # (B,3,S,S)
            feature_reconstruction=features,
            feature_target=torch.cat([*encoding.class_tokens[-1:], encoding.features[-1]], dim=1),
            features=encoding.features,
            latents=encoding.latents,
            losses=encoding.losses,
        )


def _joined(features: list[Tensor], class_tokens: list[Tensor]) -> list[Tensor]:
    """Cells (B,N,F) of every level, its class token (B,1,F) added to each of them."""
    if not class_tokens:
        return features
    return [cells + token for cells, token in zip(features, class_tokens, strict=True)]
