"""Images through the tokenizer and back: ids, and both sides as the pixels that are compared and shown.

Shapes: B images, K tokens, S side of the tokenizer's images, E side of what is compared.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vfmtok.data.transforms import to_unit_range
from vfmtok.layers.precision import full_float32
from vfmtok.metrics.psnr_and_usage import psnr
from vfmtok.tokenizers.vfmtok.model import VFMTok, to_pixels


class RoundTrip(NamedTuple):
    ids: Tensor  # (B,K) int64
    originals: Tensor  # (B,E,E,3) uint8
    decoded: Tensor  # (B,E,E,3) uint8

    def psnr(self) -> Tensor:
        """(B,) float64 in dB, on the CPU, peak 255; equal images give infinity."""
        x, y = (pixels.cpu().permute(0, 3, 1, 2).double() / 255 for pixels in (self.originals, self.decoded))
        return psnr(x, y)


@torch.no_grad()
def round_trip(tokenizer: VFMTok, crops: Tensor, size: int) -> RoundTrip:
    """crops (B,3,S,S) uint8 on the tokenizer's device -> both sides brought to ``size`` alike, in full float32."""
    images = to_unit_range(crops)  # (B,3,S,S)
    with full_float32(images.device.type):
        ids = tokenizer.encode(images).ids  # (B,K)
        return RoundTrip(ids, to_pixels(images, size), tokenizer.decode_to_uint8(ids, size))
