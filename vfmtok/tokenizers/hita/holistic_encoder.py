"""Hita's holistic encoder: learned queries, the tokens of a frozen model and the patches of the image read each other.

Shapes: B batch, G queries, M tokens of the frozen model, C their channels, g side of the patch grid, N = g*g, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.layers.feed_forward import SwiGLU, swiglu_hidden
from vfmtok.layers.positions import position_table, resample_by_scale
from vfmtok.layers.transformer import TransformerLayer


class HolisticEncoder(nn.Module):
    """First all three kinds of tokens attend to each other; then, without the frozen model's, causally in the order
    [queries, patches]."""

    def __init__(
        self, dim: int, depth: int, heads: int, mlp_dim: int, dropout: float, queries: int, grid: int, feature_dim: int
    ):
        super().__init__()
        self.queries = position_table(queries, dim, "random")
        self.patch_positions = position_table(grid**2, dim, "random")
        self.project = nn.Sequential(
            nn.Linear(feature_dim, dim, bias=False),
            nn.LayerNorm(dim),
            nn.ReLU(),
            nn.Linear(dim, dim, bias=False),
            nn.LayerNorm(dim),
        )
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(MixingLayer(dim, heads, mlp_dim, dropout) for _ in range(depth))
        self.causal_norm = nn.LayerNorm(dim)
        self.causal_layers = nn.ModuleList(TransformerLayer(dim, heads, mlp_dim, dropout) for _ in range(depth))

    def forward(self, features: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """features (B,M,C), patches (B,D,g,g) -> holistic tokens (B,G,D), patches (B,D,g,g)."""
        side, count = patches.shape[2], self.queries.shape[1]
        flat = patches.flatten(2).transpose(1, 2) + resample_by_scale(self.patch_positions, side)  # (B,N,D)
        x = torch.cat([self.queries.expand(len(flat), -1, -1), self.project(features), flat], dim=1)  # (B,G+M+N,D)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x)  # (B,G+M+N,D)
        x = self.causal_norm(torch.cat([x[:, :count], x[:, -(side**2) :]], dim=1))  # (B,G+N,D)
        for layer in self.causal_layers:
            x = layer(x, causal=True)  # (B,G+N,D)
        return x[:, :count], x[:, count:].transpose(1, 2).unflatten(2, (side, side))


class MixingLayer(nn.Module):
    """x += attention(norm(x)), its q, k, v without biases and its output with dropout; x += mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = SwiGLU(dim, swiglu_hidden(mlp_dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (B,N,D) -> (B,N,D), every token attending to all."""
        y = self.attention_norm(x)  # (B,N,D)
        q, k, v = (
            project(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.to_q, self.to_k, self.to_v)
        )  # 3 x (B,heads,N,D/heads)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B,N,D)
        x = x + self.dropout(self.to_out(out))
        return x + self.mlp(self.mlp_norm(x))
