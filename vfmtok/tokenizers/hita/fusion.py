"""Hita's fusion module: holistic and patch codes to the image map, and in training to the frozen model's features.

Shapes: B batch, G holistic tokens, g side of the patch grid, N = g*g, D width, F patches of the frozen model, C their
channels.
"""

import torch
from torch import Tensor, nn

from vfmtok.layers.attention import xavier_uniform_
from vfmtok.layers.positions import position_table, resample_by_scale
from vfmtok.layers.transformer import TransformerLayer


class FusionModule(nn.Module):
    """A causal transformer over [holistic, patches]. Cell i of the image map is its output ``shift`` places early, so
    that no patch reaches its own cell directly.

    Args:
        feature_grid, feature_dim: side and channels of the frozen model's patches, the feature branch's target; None
            without that branch.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        dropout: float,
        num_holistic: int,
        grid: int,
        shift: int,
        feature_grid: int | None = None,
        feature_dim: int | None = None,
    ):
        super().__init__()
        self.shift, self.feature_grid = shift, feature_grid
        self.patch_positions = position_table(grid**2, dim, "random")
        self.holistic_positions = position_table(num_holistic, dim, "random")
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(TransformerLayer(dim, heads, mlp_dim, dropout) for _ in range(depth))
        if feature_grid is not None:
            self.feature_mask_token = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
            self.feature_norm = nn.LayerNorm(dim)
            self.to_features = nn.Linear(dim, feature_dim)
        xavier_uniform_(self)

    def forward(self, holistic: Tensor, patches: Tensor) -> Tensor:
        """holistic (B,G,D), patches (B,D,g,g) -> the image map (B,D,g,g)."""
        side, count = patches.shape[2], holistic.shape[1]
        flat = patches.flatten(2).transpose(1, 2) + resample_by_scale(self.patch_positions, side)  # (B,N,D)
        x = self.norm(torch.cat([holistic + self.holistic_positions, flat], dim=1))  # (B,G+N,D)
        for layer in self.layers:
            x = layer(x, causal=True)  # (B,G+N,D)
        start = count - self.shift
        return x[:, start : start + side**2].transpose(1, 2).unflatten(2, (side, side))

    def features(self, holistic: Tensor) -> Tensor:
        """holistic (B,G,D) -> features (B,F,C): from the holistic codes alone, by the same layers."""
        count, cells = holistic.shape[1], self.feature_grid**2
        masked = self.feature_mask_token + resample_by_scale(self.patch_positions, self.feature_grid)  # (1,F,D)
        x = self.feature_norm(torch.cat([holistic, masked.expand(len(holistic), -1, -1)], dim=1))  # (B,G+F,D)
        sees = torch.ones(count + cells, count + cells, dtype=torch.bool, device=x.device)
        sees[:count] = sees[:count].tril()  # holistic tokens are causal; feature tokens see everything
        for layer in self.layers:
            x = layer(x, mask=sees)  # (B,G+F,D)
        return self.to_features(x[:, count:])
