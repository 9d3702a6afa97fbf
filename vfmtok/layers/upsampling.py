"""Doubling a map: convolutions, a pixel shuffle and a fixed blur.

Shapes: B batch, C channels, h and w sides of a map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLURS = {3: (1.0, 2.0, 1.0), 5: (1.0, 4.0, 6.0, 4.0, 1.0)}  # side of the kernel -> its rows and columns


class Upsample(nn.Module):
    """Depthwise 3x3 and 1x1 convolutions, pixel shuffle, blur; the norm comes first or behind the shuffle."""

    def __init__(self, inputs: int, outputs: int, blur: int, norm_first: bool):
        super().__init__()
        self.norm_first = norm_first
        normed = inputs if norm_first else outputs
        self.norm = nn.GroupNorm(min(32, normed // 4), normed)
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, 4 * outputs, 1, bias=False)
        row = torch.tensor(BLURS[blur])
        kernel = torch.outer(row, row) / row.sum() ** 2
        self.register_buffer("blur", kernel.repeat(outputs, 1, 1, 1))  # saved, as in published checkpoints

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,h,w) -> (B,outputs,2h,2w)."""
        if self.norm_first:
            x = self.norm(x)
        x = F.pixel_shuffle(self.pointwise(self.depthwise(x)), 2)  # (B,outputs,2h,2w)
        if not self.norm_first:
            x = self.norm(x)
        reach = self.blur.shape[-1] // 2
        padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
        return F.conv2d(padded, self.blur.to(x.dtype), groups=x.shape[1])
