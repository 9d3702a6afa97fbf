"""Hita (arXiv 2507.02358): an image as a set of holistic tokens and a grid of patch tokens, and back.

image -> frozen model --------.
image -> convolutional encoder -> holistic encoder -> two quantizers -> fusion module -> pixel decoder -> image

Shapes: B batch, S image side, G holistic tokens, g side of the patch grid, N = g*g, K = G + N, D width, E code
dimensions, M patches of the frozen model, C their channels.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.code import Ids
from vfmtok.decoders.vqgan import PixelDecoder
from vfmtok.encoders import build_encoder
from vfmtok.encoders.cnn import CNNEncoder
from vfmtok.errors import ConfigError
from vfmtok.layers.precision import at_least_float32, linear_in_float32
from vfmtok.layers.residual import ResBlock
from vfmtok.layers.transformer import TransformerLayer
from vfmtok.quantizers import build_quantizer, ranked_ids
from vfmtok.tokenizers.contract import check_images, to_pixels
from vfmtok.tokenizers.hita.config import HitaConfig
from vfmtok.tokenizers.hita.fusion import FusionModule
from vfmtok.tokenizers.hita.holistic_encoder import HolisticEncoder, MixingLayer
from vfmtok.tokenizers.hita.released import RELEASED


@dataclass
class Encoding:
    """What ``encode`` finds on the way to the ids."""

    ids: Tensor  # (B,K) int64, holistic first
    holistic_codes: Tensor  # (B,G,E) quantized
    patch_codes: Tensor  # (B,N,E) quantized
    holistic_latents: Tensor  # (B,G,E) before normalisation
    patch_latents: Tensor  # (B,N,E)
    features: list[Tensor]  # L x (B,M,C): the frozen model's patches; of the last level, the feature target
    losses: dict[str, Tensor]  # vq, commit, entropy: sums over both quantizers

    @property
    def latents(self) -> tuple[Tensor, Tensor]:
        """Those of each segment, in the order of the code."""
        return self.holistic_latents, self.patch_latents


@dataclass
class TokenizerOutput:
    """What training needs of one pass."""

    reconstruction: Tensor  # (B,3,S,S), nominally in [-1,1]
    feature_reconstruction: Tensor | None  # (B,M,C); None in eval mode or without the feature branch
    feature_target: Tensor  # (B,M,C)
    features: list[Tensor]
    latents: tuple[Tensor, Tensor]  # (B,G,E) holistic, (B,N,E) of the patches, before normalisation
    ids: Tensor  # (B,K) int64
    losses: dict[str, Tensor]


class Hita(nn.Module):
    """The tokenizer. It takes images of any size that is a multiple of the stride, and ids of any square patch grid;
    ``code`` is that of ``config.image_size``."""

    released = RELEASED  # its tensors' names in published files
    quantizers = ("holistic_quantizer", "patch_quantizer")  # in the order of the code's segments
    recomputed = (MixingLayer, TransformerLayer, ResBlock)  # where activations are recomputed in the backward pass

    def __init__(self, config: HitaConfig):
        super().__init__()
        self._config = config
        self.encoder = build_encoder(config.encoder)
        if not hasattr(self.encoder, "with_class_token"):
            raise ConfigError(f"encoder '{config.encoder.name}': Hita reads a class token, which it does not give")
        dim, grid = config.dim, config.position_grid or config.side
        sizes = (dim, config.depth, config.heads, config.mlp_dim, config.dropout, config.num_holistic, grid)
        branch = (self.encoder.grids[-1][0], self.encoder.widths[-1]) if config.reconstruct_features else ()
        self.patch_encoder = CNNEncoder(config.patch_encoder, dim)
        self.holistic_encoder = HolisticEncoder(*sizes, self.encoder.widths[-1])
        self.to_holistic_latents = nn.Linear(dim, config.holistic_quantizer.code_dim)
        self.to_patch_latents = nn.Conv2d(dim, config.patch_quantizer.code_dim, 1)
        self.holistic_quantizer = build_quantizer(config.holistic_quantizer)
        self.patch_quantizer = build_quantizer(config.patch_quantizer)
        self.from_holistic_codes = nn.Linear(config.holistic_quantizer.code_dim, dim)
        self.from_patch_codes = nn.Conv2d(config.patch_quantizer.code_dim, dim, 1)
        self.fusion = FusionModule(*sizes, config.shift, *branch)
        self.pixel_decoder = PixelDecoder(config.pixel_decoder, dim)

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Parts that training leaves as they are, and that its checkpoints leave out."""
        return ("encoder",) if self._config.encoder.frozen else ()

    @property
    def config(self) -> HitaConfig:
        """The resolved configuration: with what the frozen model filled in, its weights' hash included."""
        return dataclasses.replace(self._config, encoder=self.encoder.config)

    @property
    def code(self) -> Ids:
        """What ``encode`` makes of images at ``config.image_size``, and ``decode`` takes."""
        return self._config.code

    def code_vectors(self, segment: int = 0) -> Tensor:
        """The quantized vectors (V,E) of all ids of a segment, near each other for codes that mean like things."""
        quantizer = getattr(self, self.quantizers[segment])
        return quantizer.lookup(torch.arange(self.code.segments[segment].size, device=self.device))

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes the pixels, by whose gradients an adaptive weight balances losses."""
        return self.pixel_decoder.conv_out.weight

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.to_holistic_latents.weight.device

    def encode(self, images: Tensor) -> Encoding:
        """images (B,3,S,S) float in [-1,1] -> Encoding. The frozen model resizes to its own square."""
        check_images(images)
        side, stride = images.shape[2], self._config.stride
        if images.shape[3] != side or side % stride:
            raise ValueError(f"images must be square with a side that is a multiple of {stride}, got {images.shape}")
        levels = self.encoder.with_class_token(images)  # L x (B,1+M,C)
        holistic, patches = self.holistic_encoder(levels[-1], self.patch_encoder(images))  # (B,G,D), (B,D,g,g)
        holistic_latents = linear_in_float32(self.to_holistic_latents, holistic)  # (B,G,E)
        with torch.autocast(patches.device.type, enabled=False):  # a float32 island, the projection included
            weight, bias = (at_least_float32(tensor) for tensor in self.to_patch_latents.parameters())
            patch_latents = F.conv2d(patches.to(weight.dtype), weight, bias).flatten(2).transpose(1, 2)  # (B,N,E)
        first, second = self.holistic_quantizer(holistic_latents), self.patch_quantizer(patch_latents)
        return Encoding(
            ids=torch.cat([first.ids, second.ids], dim=1),
            holistic_codes=first.codes,
            patch_codes=second.codes,
            holistic_latents=holistic_latents,
            patch_latents=patch_latents,
            features=[tokens[:, 1:] for tokens in levels],
            losses={name: first.losses[name] + second.losses[name] for name in first.losses},
        )

    def ranked_ids(self, images: Tensor, count: int) -> Tensor:
        """images as of ``encode`` -> ids (B,count,K): of the nearest codes, of the second nearest, and so on.

        Raises ConfigError if a quantizer has no such order.
        """
        found = self.encode(images)
        holistic = ranked_ids(self.holistic_quantizer, found.holistic_latents, count)  # (B,count,G)
        return torch.cat([holistic, ranked_ids(self.patch_quantizer, found.patch_latents, count)], dim=2)

    def decode(self, ids: Tensor) -> Tensor:
        """ids (B,K) int64, holistic first, then any square number of patches -> images (B,3,S,S), unclamped."""
        count = self._config.num_holistic
        patches = ids.shape[1] - count if ids.ndim == 2 else -1
        if patches < 1 or math.isqrt(patches) ** 2 != patches:
            raise ValueError(f"ids must be (B,{count} + a square number), got {tuple(ids.shape)}")
        parts = ids.split([count, patches], dim=1)
        for part, segment in zip(parts, self.code.segments, strict=True):
            if ids.device.type == "cpu" and part.numel() and not (part.min() >= 0 and part.max() < segment.size):
                raise ValueError(f"ids must be in [0,{segment.size}), got {part.min()} to {part.max()}")
        return self._decode_codes(self.holistic_quantizer.lookup(parts[0]), self.patch_quantizer.lookup(parts[1]))[0]

    def decode_ids(self, ids: Tensor) -> Tensor:
        """``decode``, named."""
        return self.decode(ids)

    @torch.no_grad()
    def decode_to_uint8(self, ids: Tensor, size: int = 256) -> Tensor:
        """ids (B,K) -> pixels (B,size,size,3) uint8: bicubic to ``size``, x * 127.5 + 128, clamp, truncate."""
        return to_pixels(self.decode(ids), size)

    def forward(self, images: Tensor) -> TokenizerOutput:
        """images (B,3,S,S) in [-1,1] -> TokenizerOutput. The feature branch runs only in training mode."""
        encoding = self.encode(images)
        with_features = self.training and self._config.reconstruct_features
        reconstruction, features = self._decode_codes(encoding.holistic_codes, encoding.patch_codes, with_features)
        return TokenizerOutput(
            reconstruction=reconstruction,  # (B,3,S,S)
            feature_reconstruction=features,  # (B,M,C)
            feature_target=encoding.features[-1],
            features=encoding.features,
            latents=encoding.latents,
            ids=encoding.ids,
            losses=encoding.losses,
        )

    def _decode_codes(
        self, holistic_codes: Tensor, patch_codes: Tensor, with_features: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """codes (B,G,E) and (B,N,E) -> images (B,3,S,S), and features (B,M,C) if asked for."""
        side = math.isqrt(patch_codes.shape[1])
        holistic = self.from_holistic_codes(holistic_codes)  # (B,G,D)
        patches = self.from_patch_codes(patch_codes.transpose(1, 2).unflatten(2, (side, side)))  # (B,D,g,g)
        image_map = self.fusion(holistic, patches)  # (B,D,g,g)
        features = self.fusion.features(holistic) if with_features else None
        return self.pixel_decoder(image_map), features
