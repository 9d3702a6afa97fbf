"""VQGAN (Esser et al., 2021) as LlamaGen has it (arXiv 2406.06525): an image as a grid of discrete tokens, and back.

image -> encoder -> 1x1 convolution -> quantizer -> 1x1 convolution -> pixel decoder -> image

Shapes: B batch, S image side, g side of the token grid, K = g*g tokens, E code dimensions, Z channels of a map,
N cells and C channels of an encoder's level.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.code import Ids
from vfmtok.decoders.vqgan import PixelDecoder
from vfmtok.encoders import build_encoder
from vfmtok.encoders.cnn import CNNEncoder, CNNEncoderConfig
from vfmtok.encoders.named import ENCODERS
from vfmtok.errors import ConfigError
from vfmtok.layers.precision import at_least_float32
from vfmtok.layers.residual import ResBlock
from vfmtok.quantizers import build_quantizer, ranked_ids
from vfmtok.tokenizers.contract import check_images, to_pixels
from vfmtok.tokenizers.vqgan.config import VQGANConfig
from vfmtok.tokenizers.vqgan.released import RELEASED


@dataclass
class Encoding:
    """What ``encode`` finds on the way to the ids."""

    ids: Tensor  # (B,K) int64, row by row
    codes: Tensor  # (B,K,E) quantized
    latents: Tensor  # (B,K,E) before normalisation and quantization
    features: list[Tensor]  # of a vision foundation model: 1 x (B,N,C); of the convolutional encoder: none
    losses: dict[str, Tensor]  # of the quantizer: vq, commit, entropy


@dataclass
class TokenizerOutput:
    """What training needs of one pass."""

    reconstruction: Tensor  # (B,3,S,S), nominally in [-1,1]
    features: list[Tensor]
    latents: Tensor  # (B,K,E)
    ids: Tensor  # (B,K) int64
    losses: dict[str, Tensor]
    feature_reconstruction: None = None
    feature_target: None = None


class VQGAN(nn.Module):
    """The tokenizer. With the convolutional encoder it takes images of any size that is a multiple of the stride, and
    ids of any square grid; ``code`` is that of ``config.image_size``."""

    released = RELEASED  # its tensors' names in published files
    # The projections to and from the codes are bare products outside their modules.
    reported_parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "encoder": ("encoder",),
        "quantizer": ("to_latents", "quantizer", "from_codes", ""),
        "pixel_decoder": ("pixel_decoder",),
    }
    quantizers = ("quantizer",)  # one for each segment of the code
    recomputed = (ResBlock,)  # where activations are recomputed in the backward pass

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self._config = config
        if isinstance(config.encoder, CNNEncoderConfig):
            self.encoder, width = CNNEncoder(config.encoder, config.z_channels), config.z_channels
        else:
            self.encoder, width = _last_level_of(config)
        code_dim = config.quantizer.code_dim
        self.to_latents = nn.Conv2d(width, code_dim, 1)
        self.quantizer = build_quantizer(config.quantizer)
        self.from_codes = nn.Conv2d(code_dim, config.z_channels, 1)
        self.pixel_decoder = PixelDecoder(config.pixel_decoder, config.z_channels)

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Parts that training leaves as they are, and that its checkpoints leave out."""
        return ("encoder",) if self._config.encoder.frozen else ()

    @property
    def config(self) -> VQGANConfig:
        """The resolved configuration: with what a foundation model filled in, its weights' hash included."""
        return dataclasses.replace(self._config, encoder=self.encoder.config)

    @property
    def code(self) -> Ids:
        """What ``encode`` makes of images at ``config.image_size``, and ``decode`` takes."""
        return self._config.code

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes the pixels, by whose gradients an adaptive weight balances losses."""
        return self.pixel_decoder.conv_out.weight

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.from_codes.weight.device

    def encode(self, images: Tensor) -> Encoding:
        """images (B,3,S,S) float in [-1,1] -> Encoding. A foundation model resizes to its own square."""
        check_images(images)
        features = []
        if isinstance(self.encoder, CNNEncoder):
            self._check_stride(images)
            maps = self.encoder(images)  # (B,Z,g,g)
        else:
            features = self.encoder(images)  # 1 x (B,N,C)
            maps = features[0].transpose(1, 2).unflatten(2, self.encoder.grids[0])  # (B,C,g,g)
        with torch.autocast(maps.device.type, enabled=False):  # a float32 island, the projection included
            weight = at_least_float32(self.to_latents.weight)
            latents = F.conv2d(maps.to(weight.dtype), weight, self.to_latents.bias.to(weight.dtype))  # (B,E,g,g)
        latents = latents.flatten(2).transpose(1, 2)  # (B,K,E)
        quantized = self.quantizer(latents)
        return Encoding(quantized.ids, quantized.codes, latents, features, quantized.losses)

    def ranked_ids(self, images: Tensor, count: int) -> Tensor:
        """images as of ``encode`` -> ids (B,count,K): of the nearest codes, of the second nearest, and so on.

        Raises ConfigError if the quantizer has no such order.
        """
        return ranked_ids(self.quantizer, self.encode(images).latents, count)

    def code_vectors(self, segment: int = 0) -> Tensor:
        """The quantized vectors (V,E) of all ids, near each other for codes that mean like things."""
        return self.quantizer.lookup(torch.arange(self.code.segments[segment].size, device=self.device))

    def decode(self, code: Tensor) -> Tensor:
        """ids (B,K) int64, or quantized vectors (B,K,E) -> images (B,3,S,S), unclamped, nominally in [-1,1]."""
        if not code.is_floating_point():
            return self.decode_ids(code)
        side = math.isqrt(code.shape[1])
        maps = code.transpose(1, 2).unflatten(2, (side, side))  # (B,E,g,g)
        return self.pixel_decoder(self.from_codes(maps))

    def decode_ids(self, ids: Tensor) -> Tensor:
        """ids (B,K) int64, K any square number -> images (B,3,S,S), unclamped, nominally in [-1,1]."""
        if ids.ndim != 2 or math.isqrt(ids.shape[1]) ** 2 != ids.shape[1]:
            raise ValueError(
                f"ids must be (B,K) with K a square number such as {self.code.num_tokens}, got {ids.shape}"
            )
        size = self.code.largest_codebook
        if ids.device.type == "cpu" and ids.numel() and not (ids.min() >= 0 and ids.max() < size):  # a sync elsewhere
            raise ValueError(f"ids must be in [0,{size}), got {ids.min()} to {ids.max()}")
        return self.decode(self.quantizer.lookup(ids))

    @torch.no_grad()
    def decode_to_uint8(self, ids: Tensor, size: int = 256) -> Tensor:
        """ids (B,K) -> pixels (B,size,size,3) uint8: bicubic to ``size``, x * 127.5 + 128, clamp, truncate."""
        return to_pixels(self.decode_ids(ids), size)

    def forward(self, images: Tensor) -> TokenizerOutput:
        """images (B,3,S,S) in [-1,1] -> TokenizerOutput."""
        encoding = self.encode(images)
        return TokenizerOutput(
            reconstruction=self.decode(encoding.codes),  # (B,3,S,S)
            features=encoding.features,
            latents=encoding.latents,
            ids=encoding.ids,
            losses=encoding.losses,
        )

    def _check_stride(self, images: Tensor) -> None:
        stride, (height, width) = self._config.stride, images.shape[2:]
        if height != width or height % stride:
            raise ValueError(f"images must be square with a side that is a multiple of {stride}, got {height}x{width}")


def _last_level_of(config: VQGANConfig) -> tuple[nn.Module, int]:
    """The foundation model and its width, reading one level that has a cell for every cell of the token grid."""
    named = ENCODERS.get(config.encoder.name)
    levels = config.encoder.levels or (named.levels if named else ())
    encoder = build_encoder(dataclasses.replace(config.encoder, levels=levels[-1:] or None))
    if len(encoder.grids) != 1:  # an encoder of one's own, which alone knows its levels
        encoder = build_encoder(dataclasses.replace(config.encoder, levels=encoder.config.levels[-1:]))
    if encoder.grids[0] != (config.side, config.side):
        raise ConfigError(
            f"image_size {config.image_size} has a grid of {config.side}x{config.side} tokens, encoder "
            f"'{config.encoder.name}' at {config.encoder.image_size} px one of {'x'.join(map(str, encoder.grids[0]))}"
        )
    return encoder, encoder.widths[0]
