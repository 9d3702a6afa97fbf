"""The blocks of VQGAN's encoder and decoder (Esser et al., 2021).

Shapes: B batch, C channels, h and w sides of a map.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class ResBlock(nn.Module):
    """norm, swish, conv, norm, swish, dropout, conv, added to the input (1x1 conv if widths differ)."""

    def __init__(self, in_width: int, width: int, dropout: float):
        super().__init__()
        self.norm1 = group_norm(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1)
        self.norm2 = group_norm(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(in_width, width, 1) if in_width != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B,C,h,w)
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))  # (B,C,h,w)
        return self.shortcut(x) + h


class SpatialAttention(nn.Module):
    """Single-head self-attention over all cells, with 1x1 convolutions as projections."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = group_norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)  # (B,C,h,w)
        q, k, v = (_as_tokens(project(h)) for project in (self.q, self.k, self.v))  # 3 x (B,1,h*w,C)
        out = F.scaled_dot_product_attention(q, k, v)  # (B,1,h*w,C), scaled by C^-0.5
        return x + self.proj_out(out.squeeze(1).transpose(1, 2).reshape(x.shape))  # (B,C,h,w)


def _as_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2).unsqueeze(1)  # (B,C,h,w) -> (B,1,h*w,C)


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)
