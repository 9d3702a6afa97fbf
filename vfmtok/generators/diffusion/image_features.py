"""What REG learns besides latents: a frozen encoder's features of the images, their class token first.

Shapes: B batch, N cells of the encoder, S side of the images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.config import require
from vfmtok.encoders import build_encoder
from vfmtok.encoders.config import require_encoder_weights
from vfmtok.errors import ConfigError
from vfmtok.generators.diffusion.config import DiTConfig
from vfmtok.layers.frozen import Frozen


class ImageFeatures(nn.Module):
    """``config.align_encoder``, kept out of the generator's weights. Raises ConfigError if it does not fit."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        if config.align_encoder is None:
            raise ConfigError("generator.align_encoder is missing: its features are the class token and the targets")
        require(config.align_encoder.frozen, "generator.align_encoder.frozen", "must be true", False)
        require_encoder_weights(config, "generator")
        encoder = build_encoder(config.align_encoder)
        width, grid = encoder.widths[-1], encoder.grids[-1]
        for name, value in (("token_dim", config.token_dim), *(("align_dims", dim) for dim in config.align_dims)):
            require(value in (None, width), f"generator.{name}", f"must be the encoder's width, {width}", value)
        aligned = not config.align_dims or grid == (config.side, config.side)
        rule = f"must give {config.side} x {config.side} cells, as many as the generator's tokens"
        require(aligned, "generator.align_encoder.image_size", rule, f"{grid[0]} x {grid[1]}")
        self.encoder = Frozen(encoder)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B,3,S,S) -> (B,1+N,C) float32: the last level, behind the encoder's final norm.

        Images of another size are resized as REG's program does: bicubic, neither corners aligned nor antialiased.
        """
        encoder, images = self.encoder.network, images.float() / 127.5 - 1
        size = encoder.config.image_size
        if images.shape[-1] != size:
            images = F.interpolate(images, (size, size), mode="bicubic", align_corners=False)
        with torch.autocast(images.device.type, enabled=False):
            return encoder.with_class_token(images)[-1].float()
