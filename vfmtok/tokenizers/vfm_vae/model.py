"""VFM-VAE (arXiv 2510.18457): a frozen vision foundation model as the encoder of a variational autoencoder.

image -> levels of the frozen model -> fusion -> posterior (or codebooks) -> expansion -> style and decoder -> images

Shapes: B batch, S image side, C channels of the latents, s their side, E channels of the expanded map, L levels,
N cells and F channels of a level, Q codebooks.
"""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vfmtok.code import Code
from vfmtok.decoders.synthesis import StyleNetwork, SynthesisDecoder
from vfmtok.encoders import build_encoder
from vfmtok.errors import ConfigError
from vfmtok.layers.equivariance import Transformation
from vfmtok.layers.map_attention import MapAttention
from vfmtok.layers.modulated import ModulatedConvNeXt
from vfmtok.layers.precision import at_least_float32
from vfmtok.layers.resize import resize_by
from vfmtok.quantizers.gaussian import GaussianConfig, Posterior
from vfmtok.quantizers.multi_codebook import MultiCodebookQuantizer
from vfmtok.tokenizers.contract import check_images, to_pixels
from vfmtok.tokenizers.vfm_vae.config import VFMVAEConfig
from vfmtok.tokenizers.vfm_vae.fusion import PROJECTIONS, AttentionBlock, LevelFusion
from vfmtok.tokenizers.vfm_vae.released import ALIGNMENT, FIRST_NOISE, TOWER, released_names
from vfmtok.weights.name_maps import NameMap


@dataclass
class Encoding:
    """What ``encode`` finds. A continuous tokenizer has a ``posterior``, a discrete one ``ids`` and ``codes``."""

    posterior: Posterior | None  # mean and logvar (B,C,s,s)
    latents: Tensor  # (B,C,s,s), the mean, or a sample where one was asked for; of a discrete one (B,K,E) unquantized
    ids: Tensor | None  # (B,K) int64, K = Q*s*s, codebook by codebook
    codes: Tensor | None  # (B,C,s,s) quantized
    features: list[Tensor]  # L x (B,N,F)
    losses: dict[str, Tensor]  # of the quantizer: vq, commit, entropy; of a posterior none

    @property
    def decodable(self) -> Tensor:
        """(B,C,s,s): what the decoder gets."""
        return self.latents if self.codes is None else self.codes


@dataclass
class TokenizerOutput:
    """What training needs of one pass."""

    reconstruction: Tensor  # (B,3,S,S), nominally in [-1,1]
    pyramid: dict[int, Tensor]  # (B,3,r,r) at the sides of all other blocks, by their sides at ``config.image_size``
    posterior: Posterior | None
    features: list[Tensor]  # L x (B,N,F)
    projected_latents: Tensor | None  # (B,F,s,s)
    alignment_features: Tensor | None  # (B,F,g,g), the last level
    losses: dict[str, Tensor]
    latents: Tensor | None  # (B,K,E) unquantized, of a discrete one
    ids: Tensor | None  # (B,K)
    feature_reconstruction: None = None
    feature_target: None = None


class VFMVAE(nn.Module):
    """The tokenizer. It takes images of any size that is a multiple of ``config.size_unit``, and latents that belong to
    such a size; ``code`` is that of ``config.image_size``."""

    recomputed = (AttentionBlock, ModulatedConvNeXt, MapAttention)  # where activations are recomputed in backward

    def __init__(self, config: VFMVAEConfig):
        super().__init__()
        self._config = config
        self.carried: dict[str, Tensor] = {}  # tensors of a published file that nothing here uses
        self.encoder = build_encoder(config.encoder)
        channels = config.bottleneck.channels
        expanded = channels * config.expansion
        kind, layers = config.projection, config.projection_layers
        self.fusion = LevelFusion(
            kind, self.encoder.widths, self._factors(), config.level_width, config.bottleneck.input_width, layers
        )
        self.quantizer = None
        if not isinstance(config.bottleneck, GaussianConfig):
            self.quantizer = MultiCodebookQuantizer(config.bottleneck)
        self.expand = PROJECTIONS[kind](channels, expanded, layers)
        self.style = StyleNetwork(expanded, config.decoder.style_dim)
        self.decoder = SynthesisDecoder(config.decoder, expanded, config.latent_size, config.image_size)
        self.to_features = self._alignment_projection() if config.alignment else None

    def _factors(self) -> tuple[int, ...]:
        """Side of every level over the latents' side. Raises ConfigError unless they are whole numbers."""
        side = self._config.latent_size
        for height, width in self.encoder.grids:
            if height != width or height % side:
                raise ConfigError(
                    f"encoder '{self._config.encoder.name}' has a level of {height}x{width} cells at "
                    f"{self._config.encoder.image_size} px, which is no multiple of latent_size {side}"
                )
        return tuple(grid[0] // side for grid in self.encoder.grids)

    def _alignment_projection(self) -> nn.Conv2d:
        projection = nn.Conv2d(self._config.bottleneck.channels, self.encoder.widths[-1], 1, bias=False)
        nn.init.xavier_normal_(projection.weight, gain=0.5)
        return projection

    # ---- what every tokenizer has ----------------------------------------------------------

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Parts that training leaves as they are, and that its checkpoints leave out."""
        return ("encoder",) if self._config.encoder.frozen else ()

    @property
    def config(self) -> VFMVAEConfig:
        """The resolved configuration: with what the encoder filled in, and what published weights brought with them."""
        return dataclasses.replace(self._config, encoder=self.encoder.config)

    @property
    def code(self) -> Code:
        """What ``encode`` makes of images at ``config.image_size``, and ``decode`` takes."""
        return self._config.code

    @property
    def encode_draws(self) -> bool:
        """Whether encoding may be a matter of chance: ``encode`` then takes ``draws``."""
        return self.quantizer is None

    takes_transformations = True

    @property
    def makes_losses(self) -> bool:
        """Whether a pass has losses of its own: a quantizer's."""
        return self.quantizer is not None

    @property
    def loss_inputs(self) -> tuple[str, ...]:
        """Which inputs of further losses its passes have."""
        posterior = ("posterior",) if self.quantizer is None else ()
        aligned = () if self.to_features is None else ("projected_latents", "alignment_features")
        return ("pyramid", *posterior, *aligned)

    @property
    def pyramid_sides(self) -> tuple[int, ...]:
        """Sides of the images in ``TokenizerOutput.pyramid``."""
        return self.decoder.sides[:-1]

    def check_scale(self, scale: float) -> None:
        """Raise ConfigError unless images and latents can be resized by ``scale``."""
        side, unit = self._config.image_size * scale, self._config.size_unit
        if side % unit or side < unit:
            raise ConfigError(
                f"the decoder's {len(self.decoder.blocks)} blocks and latents of side {self._config.latent_size} "
                f"need images of a multiple of {unit} px: {self._config.image_size} times {scale:g} is {side:g}"
            )

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes the pixels, by whose gradients an adaptive weight balances losses."""
        return self.decoder.blocks[-1].to_rgb.weight

    @property
    def latent_layer(self) -> Tensor:
        """The weight that makes the latents, by whose gradients the alignment loss is balanced."""
        return self.fusion.final.last_weight

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.style.weight_in.device

    def encode(self, images: Tensor, draws: Any = None) -> Encoding:
        """images (B,3,S,S) float in [-1,1] -> Encoding.

        Args:
            draws: of a continuous tokenizer, the random numbers that ``latents`` are sampled with: ``normal(purpose,
                count)`` gives (B,count), as ``generators.counter_random.Draws`` does. Without them they are the mean.
        """
        check_images(images)
        unit, (height, width) = self._config.size_unit, images.shape[2:]
        if height != width or height % unit:
            raise ValueError(f"images must be square with a side that is a multiple of {unit}, got {height}x{width}")
        features = self.encoder(images)  # L x (B,N,F)
        moments = self.fusion([_as_map(level) for level in features])  # (B,2C,s,s), or (B,C,s,s)
        if self.quantizer is None:
            posterior = Posterior.of(moments)
            return Encoding(posterior, self._latents(posterior, draws), None, None, features, {})
        quantized = self.quantizer(moments.flatten(2).transpose(1, 2))
        codes = quantized.codes.transpose(1, 2).unflatten(2, moments.shape[2:])  # (B,C,s,s)
        rows = moments.unflatten(1, (quantized.ids.shape[1], -1)).flatten(3).transpose(2, 3).flatten(1, 2)  # (B,K,E)
        return Encoding(None, rows, quantized.ids.flatten(1), codes, features, quantized.losses)

    @staticmethod
    def _latents(posterior: Posterior, draws: Any) -> Tensor:
        if draws is None:
            return posterior.mean
        noise = draws.normal("posterior", posterior.mean[0].numel())
        return posterior.sample(noise.view_as(posterior.mean))

    def decode(self, code: Tensor) -> Tensor:
        """latents (B,C,s,s), or ids (B,K) int64 -> images (B,3,S,S), unclamped, nominally in [-1,1]."""
        return self.decode_scales(code)[self._config.image_size]

    def decode_latents(self, latents: Tensor) -> Tensor:
        """``decode``, named."""
        return self.decode(latents)

    def decode_ids(self, ids: Tensor) -> Tensor:
        """``decode``, named."""
        return self.decode(ids)

    def decode_scales(self, code: Tensor) -> dict[int, Tensor]:
        """The same at every side that the decoder makes, (B,3,r,r), small to large, by the side r that the image has
        with latents of ``config.latent_size``; others scale alike."""
        if not code.is_floating_point():
            code = self._codes(code)
        expanded = self.expand(code.to(self.style.weight_in.dtype))  # (B,E,s,s)
        images = self.decoder(expanded, self.style(expanded))  # (B,3,r,r) each
        return dict(zip(self.decoder.sides, images, strict=True))

    def _codes(self, ids: Tensor) -> Tensor:
        """(B,K) -> quantized vectors (B,C,s,s), s following from K."""
        count = 0 if self.quantizer is None else self._config.bottleneck.codebooks
        cells = ids.shape[1] // count if ids.ndim == 2 and count and ids.shape[1] % count == 0 else 0
        if not cells or math.isqrt(cells) ** 2 != cells:
            raise ValueError(f"the code must be {self.code}, got {tuple(ids.shape)} {ids.dtype}")
        size = self._config.bottleneck.codebook_size
        if ids.device.type == "cpu" and ids.numel() and not (ids.min() >= 0 and ids.max() < size):  # a sync elsewhere
            raise ValueError(f"ids must be in [0,{size}), got {ids.min()} to {ids.max()}")
        codes = self.quantizer.lookup(ids.unflatten(1, (count, cells)))  # (B,s*s,C)
        return codes.transpose(1, 2).unflatten(2, 2 * (math.isqrt(cells),))

    @torch.no_grad()
    def decode_to_uint8(self, code: Tensor, size: int = 256) -> Tensor:
        """latents or ids -> pixels (B,size,size,3) uint8: bicubic to ``size``, x * 127.5 + 128, clamp, truncate."""
        return to_pixels(self.decode(code), size)

    def forward(
        self, images: Tensor, transformation: Transformation | None = None, draws: Any = None
    ) -> TokenizerOutput:
        """images (B,3,S,S) in [-1,1] -> TokenizerOutput; what is decoded is to be compared with
        ``transformation.of_images(images)``. ``draws`` as of ``encode``."""
        transformation = transformation or Transformation()
        found = self.encode(resize_by(at_least_float32(images), transformation.prior_scale), draws)
        latents = found.decodable  # (B,C,s,s)
        scales = self.decode_scales(transformation.of_latents(latents))
        level, aligns = found.features[-1].detach(), self.to_features is not None
        return TokenizerOutput(
            reconstruction=scales.pop(self._config.image_size),
            pyramid=scales,
            posterior=found.posterior,
            features=found.features,
            projected_latents=self.to_features(latents) if aligns else None,
            alignment_features=_as_map(level) if aligns else None,
            losses=found.losses,
            latents=None if self.quantizer is None else found.latents,
            ids=found.ids,
        )

    # ---- published weights -----------------------------------------------------------------

    @property
    def released(self) -> NameMap:
        """Its tensors' names in published files."""
        backbone, sizes = self.encoder.backbone, (0, 0)
        if "siglip" in backbone.pretrained_cfg["architecture"]:
            sizes = backbone.blocks[0].mlp.fc1.in_features, backbone.blocks[0].mlp.fc1.out_features
        return released_names(self._config, *sizes)

    def fit_released(self, names: Collection[str]) -> None:
        """Become the variant that a published file with these names holds: with or without the alignment projection and
        noise maps."""
        if (ALIGNMENT in names) != (self.to_features is not None):
            self.to_features = self._alignment_projection().to(self.device) if ALIGNMENT in names else None
        has_noise = FIRST_NOISE in names
        if has_noise != self._config.decoder.noise:
            self.decoder.set_noise(has_noise)
        decoder = dataclasses.replace(self._config.decoder, noise=has_noise)
        self._config = dataclasses.replace(self._config, alignment=self.to_features is not None, decoder=decoder)
        if any(name.startswith(TOWER) for name in names):
            self.encoder.note_weights()


def _as_map(level: Tensor) -> Tensor:
    """Cells (B,N,F) of a square level -> (B,F,g,g)."""
    side = math.isqrt(level.shape[1])
    return level.transpose(1, 2).unflatten(2, (side, side))
