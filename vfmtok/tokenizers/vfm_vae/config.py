"""What can be set in a VFM-VAE tokenizer."""

from dataclasses import dataclass, field
from typing import Literal

from vfmtok.code import Code, Ids, Latents, Segment
from vfmtok.config import require, require_positive
from vfmtok.decoders.synthesis import SynthesisConfig
from vfmtok.encoders.config import EncoderConfig
from vfmtok.quantizers.gaussian import GaussianConfig
from vfmtok.quantizers.multi_codebook import MultiCodebookConfig


def _siglip2() -> EncoderConfig:
    return EncoderConfig(
        name="siglip2_vitl16_512",
        image_size=512,
        input_scale=2.0,
        resize="bilinear",
        levels=(0, 12, 24),
        position_resampling="plain",
        weights="released",
    )


@dataclass(frozen=True)
class VFMVAEConfig:
    """The defaults are the published model, f16d32 on SigLIP2-L."""

    kind: Literal["vfm_vae"] = "vfm_vae"
    image_size: int = 256  # of training and reconstructions; every multiple of ``size_unit`` can be encoded
    latent_size: int = 16  # side of the latents of such an image
    projection: Literal["attention", "conv"] = "attention"  # what fuses levels and widens latents
    projection_layers: int = 1  # attention blocks wherever the published model has one
    level_width: int = 64  # channels that each level is narrowed to
    expansion: int = 16  # the decoder gets this multiple of the latents' channels
    alignment: bool = True  # the projection of latents that the alignment loss compares with the encoder's features
    encoder: EncoderConfig = field(default_factory=_siglip2)
    bottleneck: GaussianConfig | MultiCodebookConfig = field(default_factory=GaussianConfig)
    decoder: SynthesisConfig = field(default_factory=SynthesisConfig)

    def __post_init__(self):
        require_positive(self, "", "image_size", "latent_size", "projection_layers", "level_width", "expansion")
        blocks = self.decoder.smallest_share
        fits = self.image_size % blocks == 0
        require(fits, "image_size", f"must be a multiple of 2^{len(self.decoder.widths)} = {blocks}", self.image_size)
        sides = [self.image_size // blocks * 2**index for index in range(len(self.decoder.injected))]
        fits = all(max(self.latent_size, side) % min(self.latent_size, side) == 0 for side in sides)
        require(fits, "latent_size", f"must divide or be divided by the sides {sides} it enters at", self.latent_size)
        fits = self.image_size % self.latent_size == 0
        require(fits, "latent_size", f"must divide image_size {self.image_size}", self.latent_size)
        scale = self.encoder.input_scale
        if scale is not None:
            seen = int(self.image_size * scale)
            rule = f"must be image_size times encoder.input_scale, {seen}"
            require(self.encoder.image_size == seen, "encoder.image_size", rule, self.encoder.image_size)

    @property
    def size_unit(self) -> int:
        """Sides of images, in pixels, must be multiples of it: cells of latents and of the coarsest block are whole."""
        return max(self.image_size // self.latent_size, self.decoder.smallest_share)

    @property
    def code(self) -> Code:
        """Latents, or one segment of ids for every codebook."""
        if isinstance(self.bottleneck, GaussianConfig):
            return Latents((self.bottleneck.channels, self.latent_size, self.latent_size))
        grid = (self.latent_size, self.latent_size)
        segment = Segment(self.latent_size**2, self.bottleneck.codebook_size, grid)
        return Ids((segment,) * self.bottleneck.codebooks)
