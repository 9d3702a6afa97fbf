"""Self-attention over the cells of a map, in the way of GigaGAN (Kang et al., 2023).

Shapes: B batch, C channels, h and w sides of a map, H heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.layers.precision import at_least_float32


class ChannelRMSNorm(nn.Module):
    """Every cell's vector divided by its length, times sqrt(C) and a learned gain."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C,h,w)."""
        y = F.normalize(at_least_float32(x), dim=1, eps=1e-12)
        return (y * math.sqrt(x.shape[1]) * self.gain).to(x.dtype)


class MapAttention(nn.Module):
    """x += attention(norm(x)) without positions, beside a learned null token in every head; x += mlp(norm(x))."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = ChannelRMSNorm(channels)
        self.to_q = nn.Conv2d(channels, channels, 1, bias=False)
        self.to_k = nn.Conv2d(channels, channels, 1, bias=False)
        self.to_v = nn.Conv2d(channels, channels, 1, bias=False)
        self.null_token = nn.Parameter(0.02 * torch.randn(2, heads, channels // heads))  # key, value
        self.to_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.mlp_norm = ChannelRMSNorm(channels)
        self.mlp_in = nn.Conv2d(channels, 4 * channels, 1)
        self.mlp_out = nn.Conv2d(4 * channels, channels, 1)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.mlp_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C,h,w)."""
        y = self.attention_norm(x)
        q, k, v = (self._split_heads(project(y)) for project in (self.to_q, self.to_k, self.to_v))  # 3 x (B,H,h*w,C/H)
        null = self.null_token.to(k.dtype)[:, None, :, None].expand(-1, len(x), -1, -1, -1)  # (2,B,H,1,C/H)
        k, v = torch.cat([null[0], k], dim=2), torch.cat([null[1], v], dim=2)  # (B,H,1+h*w,C/H)
        out = F.scaled_dot_product_attention(q, k, v)  # (B,H,h*w,C/H)
        x = x + self.to_out(out.transpose(2, 3).reshape(x.shape))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)  # (B,C,h,w) -> (B,H,h*w,C/H)
