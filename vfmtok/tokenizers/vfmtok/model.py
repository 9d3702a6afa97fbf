"""VFMTok (arXiv 2507.08441): an image as a short grid of discrete region tokens, and back.

image -> frozen encoder -> region sampler -> quantizer -> ViT decoder -> pixel decoder -> image

Shapes: B batch, S image side, K tokens, D width, E code dimensions, L levels, N cells, C channels.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vfmtok.code import Ids
from vfmtok.decoders.vqgan import PixelDecoder
from vfmtok.encoders import build_encoder
from vfmtok.errors import ConfigError
from vfmtok.layers.frozen import Frozen
from vfmtok.layers.precision import full_float32, linear_in_float32
from vfmtok.layers.region_sampler import RegionSampler, SamplerLayer
from vfmtok.layers.residual import ResBlock
from vfmtok.quantizers import build_quantizer, ranked_ids
from vfmtok.quantizers.cosine import Quantized
from vfmtok.tokenizers.contract import SamplingPoints, check_images, to_pixels
from vfmtok.tokenizers.vfmtok.config import VFMTokConfig
from vfmtok.tokenizers.vfmtok.released import RELEASED
from vfmtok.tokenizers.vfmtok.vit_decoder import DecoderLayer, ViTDecoder


@dataclass
class Encoding:
    """What ``encode`` finds on the way to the ids."""

    ids: Tensor  # (B,K) int64
    codes: Tensor  # (B,K,E) quantized; unit vectors, of the cosine quantizer
    latents: Tensor  # (B,K,E) before normalisation and quantization
    region_tokens: Tensor  # (B,K,D)
    features: list[Tensor]  # L x (B,N,C) from the encoder; the last is the feature target
    losses: dict[str, Tensor]  # of the quantizer: vq, commit, entropy


@dataclass
class TokenizerOutput:
    """What training needs of one pass."""

    reconstruction: Tensor  # (B,3,S,S), nominally in [-1,1]
    feature_reconstruction: Tensor | None  # (B,N,C); None in eval mode or without the feature branch
    feature_target: Tensor | None  # (B,N,C): the last of ``features``, or of those of ``feature_encoder``, in training
    features: list[Tensor]  # L x (B,N,C) from the encoder
    latents: Tensor  # (B,K,E) before normalisation and quantization
    ids: Tensor  # (B,K) int64
    losses: dict[str, Tensor]  # of the quantizer: vq, commit, entropy


class VFMTok(nn.Module):
    """The tokenizer. Call ``eval()`` before decoding: in training mode the ViT decoder's dropout is on."""

    released = RELEASED  # its tensors' names in published files
    # The projection to the latents is a bare product outside its module.
    reported_parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "encoder": ("encoder",),
        "sampler": ("sampler",),
        "quantizer": ("to_latents", "quantizer", ""),
        "decoder": ("decoder",),
        "pixel_decoder": ("pixel_decoder",),
    }
    quantizers = ("quantizer",)  # one for each segment of the code
    recomputed = (SamplerLayer, DecoderLayer, ResBlock)  # where activations are recomputed in the backward pass

    def __init__(self, config: VFMTokConfig):
        super().__init__()
        self.encoder = build_encoder(config.encoder)
        self._config = config  # as given; forward reads it, since resolving it every time is not free
        self.feature_encoder = None  # else frozen, and neither saved nor among the parameters
        if config.feature_encoder is not None:
            self.feature_encoder = Frozen(build_encoder(config.feature_encoder))
        dim, code_dim, start = config.dim, config.quantizer.code_dim, config.initial_positions
        target = self.encoder if self.feature_encoder is None else self.feature_encoder.network
        feature_grid, feature_width = target.grids[-1], target.widths[-1]
        if feature_grid[0] != feature_grid[1]:
            raise ConfigError(f"encoder '{target.config.name}': the last level must be square, is {feature_grid}")
        self.sampler = RegionSampler(config.sampler, dim, self.encoder.widths, self.encoder.grids, start)
        self.to_latents = nn.Linear(dim, code_dim)
        self.quantizer = build_quantizer(config.quantizer)
        self.decoder = ViTDecoder(
            config.decoder,
            dim,
            code_dim=code_dim,
            num_tokens=config.sampler.num_tokens,
            image_grid=config.image_grid,
            feature_grid=feature_grid[0],
            feature_dim=feature_width,
            initial_positions=start,
        )
        self.pixel_decoder = PixelDecoder(config.pixel_decoder, z_channels=dim)

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Parts that training leaves as they are, and that its checkpoints leave out."""
        return ("encoder",) if self._config.encoder.frozen else ()

    @property
    def config(self) -> VFMTokConfig:
        """The resolved configuration: with what the encoders filled in, their weights' hashes included."""
        target = None if self.feature_encoder is None else self.feature_encoder.network.config
        return dataclasses.replace(self._config, encoder=self.encoder.config, feature_encoder=target)

    @property
    def code(self) -> Ids:
        """What ``encode`` makes and ``decode`` takes."""
        return self._config.code

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes the pixels, by whose gradients an adaptive weight balances losses."""
        return self.pixel_decoder.conv_out.weight

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.to_latents.weight.device

    def encode(self, images: Tensor) -> Encoding:
        """images (B,3,H,W) float in [-1,1], any size: the encoder resizes to its own square -> Encoding."""
        check_images(images)
        features = self.encoder(images)  # L x (B,N,C)
        region_tokens = self.sampler(features)  # (B,K,D)
        latents, quantized = self.quantize(region_tokens)
        return Encoding(quantized.ids, quantized.codes, latents, region_tokens, features, quantized.losses)

    def ranked_ids(self, images: Tensor, count: int) -> Tensor:
        """images as of ``encode`` -> ids (B,count,K): of the nearest codes, of the second nearest, and so on.

        Raises ConfigError if the quantizer has no such order.
        """
        return ranked_ids(self.quantizer, self.encode(images).latents, count)

    @property
    def has_sampling_points(self) -> bool:
        """Whether its region tokens read the image at points, not in windows."""
        return self.sampler.attention == "deformable"

    @torch.no_grad()
    def sampling_points(self, images: Tensor) -> list[SamplingPoints]:
        """Where region tokens read images (B,3,H,W) in [-1,1]: in the first, a middle and the last layer."""
        with full_float32(images.device.type):
            return [SamplingPoints(*found) for found in self.sampler.points_of_layers(self.encoder(images))]

    def quantize(self, region_tokens: Tensor) -> tuple[Tensor, Quantized]:
        """(B,K,D) -> latents (B,K,E) and their codes. A float32 island, the projection included."""
        latents = linear_in_float32(self.to_latents, region_tokens)  # (B,K,E)
        return latents, self.quantizer(latents)

    def code_vectors(self, segment: int = 0) -> Tensor:
        """The quantized vectors (V,E) of all ids, near each other for codes that mean like things."""
        return self.quantizer.lookup(torch.arange(self.code.segments[segment].size, device=self.device))

    def decode(self, code: Tensor) -> Tensor:
        """ids (B,K) int64, or quantized vectors (B,K,E) -> images (B,3,S,S), unclamped, nominally in [-1,1]."""
        if not code.is_floating_point():
            return self.decode_ids(code)
        image_map, _ = self.decoder(code)  # (B,D,g,g)
        return self.pixel_decoder(image_map)

    def decode_ids(self, ids: Tensor) -> Tensor:
        """ids (B,K) int64 -> images (B,3,S,S), unclamped, nominally in [-1,1]."""
        tokens, size = self.code.num_tokens, self.code.largest_codebook
        if ids.ndim != 2 or ids.shape[1] != tokens:
            raise ValueError(f"ids must be (B,{tokens}), got {tuple(ids.shape)}")
        if ids.device.type == "cpu" and ids.numel() and not (ids.min() >= 0 and ids.max() < size):  # a sync elsewhere
            raise ValueError(f"ids must be in [0,{size}), got {ids.min()} to {ids.max()}")
        return self.decode(self.quantizer.lookup(ids))

    @torch.no_grad()
    def decode_to_uint8(self, ids: Tensor, size: int = 256) -> Tensor:
        """ids (B,K) -> pixels (B,size,size,3) uint8: bicubic to ``size``, x * 127.5 + 128, clamp, truncate."""
        return to_pixels(self.decode_ids(ids), size)

    def forward(self, images: Tensor) -> TokenizerOutput:
        """images (B,3,S,S) in [-1,1] at ``config.image_size`` -> TokenizerOutput.

        The feature branch runs only in training mode.
        """
        check_images(images, self._config.image_size)
        encoding = self.encode(images)
        with_features = self.training and self._config.decoder.reconstruct_features
        image_map, features = self.decoder(encoding.codes, with_features)  # (B,D,g,g), (B,N,C)
        target = encoding.features[-1]  # (B,N,C)
        if self.feature_encoder is not None:
            target = self.feature_encoder(images)[-1] if with_features else None
        return TokenizerOutput(
            reconstruction=self.pixel_decoder(image_map),  # (B,3,S,S)
            feature_reconstruction=features,
            feature_target=target,
            features=encoding.features,
            latents=encoding.latents,
            ids=encoding.ids,
            losses=encoding.losses,
        )
