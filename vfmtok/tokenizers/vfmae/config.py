"""What can be set in a VFMAE tokenizer."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from vfmtok.code import Latents
from vfmtok.config import require, require_positive, require_share
from vfmtok.decoders.vqgan import PixelDecoderConfig
from vfmtok.encoders.config import EncoderConfig
from vfmtok.layers.region_sampler import SamplerConfig


@dataclass(frozen=True)
class DecoderConfig:
    """The bidirectional transformers that turn latents into an image map and, in training, into encoder features."""

    depth: int = 4  # of the image branch
    feature_depth: int = 1  # of the feature branch
    heads: int = 8
    mlp_dim: int = 2048  # SwiGLU keeps 2/3 of it, rounded up to a multiple of 8
    attention_dropout: float = 0.1
    reconstruct_features: bool = True

    def __post_init__(self):
        require_positive(self, "decoder", "depth", "feature_depth", "heads", "mlp_dim")
        require_share(self.attention_dropout, "decoder.attention_dropout")


@dataclass(frozen=True)
class VFMAEConfig:
    """The whole tokenizer; the defaults are the published model."""

    kind: Literal["vfmae"] = "vfmae"
    image_size: int = 256  # of reconstructions
    dim: int = 512  # a multiple of 32, the groups of the bottleneck's norm
    latent_channels: int = 32
    # Whether the encoder's class token joins every cell of its level, and is the first of the features that are
    # reconstructed. None: where the encoder has one.
    class_token: bool | None = None
    initial_positions: Literal["random", "sincos"] = "random"  # queries, slots and patches at the start
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(image_size=224, resize="blur"))
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=lambda: PixelDecoderConfig(res_blocks=3))

    PUBLISHED_FLAGS: ClassVar[dict[str, tuple[str, ...]]] = {  # see tokenizers/published_flags.py
        "--image-size": ("image_size",),
        "--embed-dim": ("latent_channels",),
        "--z-channels": ("dim",),
        "--dropout-p": ("pixel_decoder.dropout",),
        "--enable-vfm-recon": ("decoder.reconstruct_features",),
        "--ae-model": ("pixel_decoder.multipliers",),
    }

    def __post_init__(self):
        require_positive(self, "", "dim", "latent_channels")
        require(self.dim % 32 == 0, "dim", "must be a multiple of 32", self.dim)
        fits = self.image_size > 0 and self.image_size % self.stride == 0
        require(fits, "image_size", f"must be a multiple of the pixel decoder's stride {self.stride}", self.image_size)
        for part, heads in (("sampler", self.sampler.heads), ("decoder", self.decoder.heads)):
            require(self.dim % heads == 0, f"{part}.heads", f"must divide dim {self.dim}", heads)

    @property
    def stride(self) -> int:
        """Pixels of the reconstruction per cell of the ViT decoder's image map, per side."""
        return self.pixel_decoder.stride

    @property
    def image_grid(self) -> int:
        """Side of the ViT decoder's image map, in cells."""
        return self.image_size // self.stride

    @property
    def code(self) -> Latents:
        """A vector for each region token, on the grid of the queries: the one at (i,j) is that of query i*side + j."""
        side = math.isqrt(self.sampler.num_tokens)
        return Latents((self.latent_channels, side, side))
