"""What can be set in a VQGAN tokenizer."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from vfmtok.code import Ids, Segment
from vfmtok.config import require, require_positive
from vfmtok.decoders.vqgan import PixelDecoderConfig
from vfmtok.encoders.cnn import CNNEncoderConfig
from vfmtok.encoders.config import EncoderConfig
from vfmtok.quantizers import AnyQuantizerConfig, CosineConfig


@dataclass(frozen=True)
class VQGANConfig:
    """The defaults are LlamaGen's VQ-16 (arXiv 2406.06525).

    ``encoder.kind: vfm`` is the paper's pilot study: the last level of a frozen vision foundation model instead of a
    trained encoder.
    """

    kind: Literal["vqgan"] = "vqgan"
    image_size: int = 256  # of training and reconstructions; the weights fit every multiple of the stride
    z_channels: int = 256  # of the maps before and behind the quantizer
    encoder: CNNEncoderConfig | EncoderConfig = field(default_factory=CNNEncoderConfig)
    quantizer: AnyQuantizerConfig = field(default_factory=lambda: CosineConfig(code_dim=8))
    pixel_decoder: PixelDecoderConfig = field(
        default_factory=lambda: PixelDecoderConfig(res_blocks=3, coarse_attention=True)
    )

    PUBLISHED_FLAGS: ClassVar[dict[str, tuple[str, ...]]] = {  # see tokenizers/published_flags.py
        "--image-size": ("image_size",),
        "--codebook-size": ("quantizer.codebook_size",),
        "--codebook-embed-dim": ("quantizer.code_dim",),
        "--entropy-loss-ratio": ("quantizer.entropy_weight",),
        "--commit-loss-beta": ("quantizer.commit_weight",),
        "--z-channels": ("z_channels",),
        "--dropout-p": ("encoder.dropout", "pixel_decoder.dropout"),
        "--vq-model": ("encoder.multipliers", "pixel_decoder.multipliers"),
    }

    def __post_init__(self):
        require_positive(self, "", "z_channels")
        fits = self.image_size > 0 and self.image_size % self.stride == 0
        require(fits, "image_size", f"must be a multiple of the pixel decoder's stride {self.stride}", self.image_size)
        if isinstance(self.encoder, CNNEncoderConfig):
            same = self.encoder.stride == self.stride
            rule = f"must have as many levels as pixel_decoder.multipliers, {len(self.pixel_decoder.multipliers)}"
            require(same, "encoder.multipliers", rule, len(self.encoder.multipliers))

    @property
    def stride(self) -> int:
        """Pixels per cell of the token grid, per side."""
        return self.pixel_decoder.stride

    @property
    def side(self) -> int:
        """Cells per side of the token grid."""
        return self.image_size // self.stride

    @property
    def code(self) -> Ids:
        """One id a cell of the map, row by row."""
        return Ids((Segment(self.side**2, self.quantizer.codebook_size, (self.side, self.side)),))
