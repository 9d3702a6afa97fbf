"""What can be set in a VFMTok tokenizer."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from vfmtok.code import Ids, Segment, square_grid
from vfmtok.config import require, require_positive, require_share
from vfmtok.decoders.vqgan import PixelDecoderConfig
from vfmtok.encoders.config import EncoderConfig
from vfmtok.layers.region_sampler import SamplerConfig
from vfmtok.quantizers import AnyQuantizerConfig, CosineConfig


@dataclass(frozen=True)
class DecoderConfig:
    """The causal ViT that turns codes into an image map and, in training, into encoder features."""

    depth: int = 6
    heads: int = 8
    mlp_dim: int = 2048  # SwiGLU keeps 2/3 of it, rounded up to a multiple of 8
    attention_dropout: float = 0.1
    registers: int = 4
    register_position: Literal["end", "front"] = "end"  # released models: at the end, where they are inert
    shared: bool = True  # one ViT for both branches; False gives the feature branch its own layers
    mask_tokens: Literal["separate", "shared"] = "separate"
    reconstruct_features: bool = True
    position_grid: int | None = None  # side of the learned patch positions; None: the grid of the feature target
    PINNED: ClassVar[dict[str, Any]] = {
        "depth": 6,
        "heads": 8,
        "mlp_dim": 2048,
        "attention_dropout": 0.1,
        "registers": 4,
        "register_position": "end",
        "shared": True,
        "mask_tokens": "separate",
        "reconstruct_features": True,
        "position_grid": None,
    }

    def __post_init__(self):
        require_positive(self, "decoder", "depth", "heads", "mlp_dim")
        require(self.registers >= 0, "decoder.registers", "must be 0 or more", self.registers)
        require_share(self.attention_dropout, "decoder.attention_dropout")
        grid = self.position_grid
        require(grid is None or grid > 0, "decoder.position_grid", "must be positive", grid)


@dataclass(frozen=True)
class VFMTokConfig:
    """The whole tokenizer; the defaults are the paper's model."""

    kind: Literal["vfmtok"] = "vfmtok"
    image_size: int = 336  # of reconstructions
    dim: int = 512
    initial_positions: Literal["random", "sincos"] = "random"  # queries, slots and patches at the start
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    quantizer: AnyQuantizerConfig = field(default_factory=CosineConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    # A second, frozen encoder, whose last level ``decoder.reconstruct_features`` reconstructs; None: ``encoder``'s own.
    # It is for an encoder that is trained: its own features would be a target that moves to meet its reconstruction.
    feature_encoder: EncoderConfig | None = None
    PUBLISHED_FLAGS: ClassVar[dict[str, tuple[str, ...]]] = {  # see tokenizers/published_flags.py
        "--image-size": ("image_size",),
        "--codebook-size": ("quantizer.codebook_size",),
        "--codebook-slots-embed-dim": ("quantizer.code_dim",),
        "--codebook-embed-dim": (),  # published commands have it, and it sets nothing: there is no patch codebook
        "--entropy-loss-ratio": ("quantizer.entropy_weight",),
        "--commit-loss-beta": ("quantizer.commit_weight",),
        "--z-channels": ("dim",),
        "--dropout-p": ("pixel_decoder.dropout",),
        "--enable-vfm-recon": ("decoder.reconstruct_features",),
        "--vq-model": ("pixel_decoder.multipliers",),
    }
    PINNED: ClassVar[dict[str, Any]] = {
        "kind": "vfmtok",
        "image_size": 336,
        "dim": 512,
        "initial_positions": "random",
    }
    UNHASHED: ClassVar[tuple[str, ...]] = ("feature_encoder",)  # what training alone uses

    def __post_init__(self):
        require_positive(self, "", "dim")
        if self.feature_encoder is not None:
            require(self.feature_encoder.frozen, "feature_encoder.frozen", "must be true", False)
            used = self.decoder.reconstruct_features
            require(used, "feature_encoder", "needs decoder.reconstruct_features true", self.feature_encoder.name)
        fits = self.image_size > 0 and self.image_size % self.stride == 0
        require(fits, "image_size", f"must be a multiple of the pixel decoder's stride {self.stride}", self.image_size)
        for part, heads in (("sampler", self.sampler.heads), ("decoder", self.decoder.heads)):
            require(heads > 0 and self.dim % heads == 0, f"{part}.heads", f"must divide dim {self.dim}", heads)
        if self.initial_positions == "sincos":
            require(self.dim % 4 == 0, "dim", "must be a multiple of 4 for sincos positions", self.dim)

    @property
    def stride(self) -> int:
        """Pixels of the reconstruction per cell of the ViT decoder's image map, per side."""
        return self.pixel_decoder.stride

    @property
    def image_grid(self) -> int:
        """Side of the ViT decoder's image map, in cells."""
        return self.image_size // self.stride

    @property
    def code(self) -> Ids:
        """One id a token; the tokens lie on a square grid."""
        tokens = self.sampler.num_tokens
        return Ids((Segment(tokens, self.quantizer.codebook_size, square_grid(tokens)),))


TokenizerConfig = VFMTokConfig  # its name in version 0.1
