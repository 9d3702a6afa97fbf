"""A change of scale and orientation that a decoder shall follow: equivariance regularisation (VFM-VAE).

Either the latents are resized and turned before they are decoded, or the image is shrunk before the encoder sees it;
what is decoded is compared with the image transformed alike.

Shapes: B batch, S image side.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Transformation:
    """
    Attributes:
        latent_scale: of the sides of the latents before they are decoded.
        quarter_turns: of the latents, clockwise, after it.
        prior_scale: of the sides of the image before the encoder sees it.
    """

    latent_scale: float = 1.0
    quarter_turns: int = 0
    prior_scale: float = 1.0

    def of_latents(self, latents: Tensor) -> Tensor:
        """(B,C,h,w) -> resized (bilinear, not antialiased) and turned, (B,C,h',w')."""
        if self.latent_scale != 1:
            latents = F.interpolate(latents, scale_factor=self.latent_scale, mode="bilinear", align_corners=False)
        return self._turned(latents)

    def of_images(self, images: Tensor) -> Tensor:
        """Images (B,3,S,S) in [-1,1] -> what shall be decoded: resized (bilinear, antialiased) and turned."""
        scale = self.latent_scale * self.prior_scale
        if scale != 1:
            size = tuple(round(side * scale) for side in images.shape[-2:])
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return self._turned(images)

    def _turned(self, maps: Tensor) -> Tensor:
        return torch.rot90(maps, self.quarter_turns, dims=(-1, -2)) if self.quarter_turns % 4 else maps
