"""What can be set in a Hita tokenizer."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from vfmtok.code import Ids, Segment
from vfmtok.config import require, require_positive, require_share
from vfmtok.decoders.vqgan import PixelDecoderConfig
from vfmtok.encoders.cnn import CNNEncoderConfig
from vfmtok.encoders.config import EncoderConfig
from vfmtok.quantizers import AnyQuantizerConfig, CosineConfig


def _frozen_model() -> EncoderConfig:
    return EncoderConfig(image_size=224, levels=(24,), resize="blur")


@dataclass(frozen=True)
class HitaConfig:
    """The defaults are Hita-V; ``reconstruct_features`` makes it Hita-U."""

    kind: Literal["hita"] = "hita"
    image_size: int = 336  # a multiple of the stride
    dim: int = 512
    num_holistic: int = 128
    depth: int = 3  # layers of each of the three transformers
    heads: int = 8
    mlp_dim: int = 2048  # SwiGLU keeps 2/3 of it, rounded up to a multiple of 8
    dropout: float = 0.1  # of attention, in training
    shift: int = 4  # a cell of the image map is read so many places early in the fused sequence
    reconstruct_features: bool = False  # the feature branch, in training only
    position_grid: int | None = None  # side of the learned patch positions; None: that of image_size
    encoder: EncoderConfig = field(
        default_factory=_frozen_model
    )  # its last level is read, all by loss.perceptual: encoder
    patch_encoder: CNNEncoderConfig = field(default_factory=CNNEncoderConfig)
    holistic_quantizer: AnyQuantizerConfig = field(default_factory=CosineConfig)
    patch_quantizer: AnyQuantizerConfig = field(default_factory=lambda: CosineConfig(code_dim=8))
    pixel_decoder: PixelDecoderConfig = field(
        default_factory=lambda: PixelDecoderConfig(res_blocks=3, coarse_attention=True)
    )

    PUBLISHED_FLAGS: ClassVar[dict[str, tuple[str, ...]]] = {  # see tokenizers/published_flags.py
        "--image-size": ("image_size",),
        "--num-slots": ("num_holistic",),
        "--codebook-size": ("holistic_quantizer.codebook_size", "patch_quantizer.codebook_size"),
        "--codebook-slots-embed-dim": ("holistic_quantizer.code_dim",),
        "--codebook-embed-dim": ("patch_quantizer.code_dim",),
        "--entropy-loss-ratio": ("holistic_quantizer.entropy_weight", "patch_quantizer.entropy_weight"),
        "--commit-loss-beta": ("holistic_quantizer.commit_weight", "patch_quantizer.commit_weight"),
        "--z-channels": ("dim",),
        "--dropout-p": ("patch_encoder.dropout", "pixel_decoder.dropout"),
        "--vq-model": ("patch_encoder.multipliers", "pixel_decoder.multipliers"),
    }
    # The published switch turned on a loss whose branch the model file has or has not: it must say the same.
    CHECKED_FLAGS: ClassVar[dict[str, str]] = {"--enable-vfm-recon": "reconstruct_features"}

    def __post_init__(self):
        require_positive(self, "", "dim", "num_holistic", "depth", "heads", "mlp_dim")
        require_share(self.dropout, "dropout")
        require(self.dim % self.heads == 0, "heads", f"must divide dim {self.dim}", self.heads)
        require(0 <= self.shift <= self.num_holistic, "shift", f"must be in [0,{self.num_holistic}]", self.shift)
        grid = self.position_grid
        require(grid is None or grid > 0, "position_grid", "must be positive", grid)
        fits = self.image_size > 0 and self.image_size % self.stride == 0
        require(fits, "image_size", f"must be a multiple of the pixel decoder's stride {self.stride}", self.image_size)
        rule = f"must have as many levels as pixel_decoder.multipliers, {len(self.pixel_decoder.multipliers)}"
        same = self.patch_encoder.stride == self.stride
        require(same, "patch_encoder.multipliers", rule, len(self.patch_encoder.multipliers))

    @property
    def stride(self) -> int:
        """Pixels per patch, per side."""
        return self.pixel_decoder.stride

    @property
    def side(self) -> int:
        """Patches per side."""
        return self.image_size // self.stride

    @property
    def code(self) -> Ids:
        """Holistic ids, which have no place in the image, then one id a patch, row by row."""
        holistic = Segment(self.num_holistic, self.holistic_quantizer.codebook_size)
        return Ids((holistic, Segment(self.side**2, self.patch_quantizer.codebook_size, (self.side, self.side))))
