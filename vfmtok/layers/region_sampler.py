"""The region sampler: learned queries on a grid read the encoder's maps and become region tokens.

Shapes: B batch, K queries (region tokens), L levels, N cells of a level, S cells of all levels,
C channels of a level, D width, H heads, P points.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.config import require, require_positive
from vfmtok.layers.attention import Attention
from vfmtok.layers.deformable_attention import DeformableAttention
from vfmtok.layers.positions import position_table

Grids = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class SamplerConfig:
    """Learned queries that read regions of the encoder's feature maps."""

    attention: Literal["deformable", "windowed"] = "deformable"
    num_tokens: int = 256  # a square number: the queries sit on a grid
    depth: int = 6
    heads: int = 8
    points: int = 4  # deformable: sampling points per head and level
    window: int = 5  # windowed: side, in feature-map cells, of the square a query may read
    mlp_dim: int = 1024
    PINNED: ClassVar[dict[str, Any]] = {  # see weights/hashing.py; never changed, only added to
        "attention": "deformable",
        "num_tokens": 256,
        "depth": 6,
        "heads": 8,
        "points": 4,
        "window": 5,
        "mlp_dim": 1024,
    }

    def __post_init__(self):
        square = self.num_tokens > 0 and math.isqrt(self.num_tokens) ** 2 == self.num_tokens
        require(square, "sampler.num_tokens", "must be a square number", self.num_tokens)
        require_positive(self, "sampler", "depth", "heads", "points", "window", "mlp_dim")


class RegionSampler(nn.Module):
    """Feature levels -> region tokens.

    ``config.attention`` is "deformable" (the paper's: every query chooses its points on every
    level) or "windowed" (its ablation: levels are concatenated by channel, and every query attends
    to the cells in a square window around its reference point).

    Args:
        config: depth, heads and the kind of attention.
        dim: D.
        widths, grids: C and (height, width) of every level.
        initial_positions: of the queries: "random" or "sincos".
        causal: a query sees the earlier queries and itself (VFMTok), else all of them (VFMAE).
    """

    def __init__(
        self,
        config: SamplerConfig,
        dim: int,
        widths: Sequence[int],
        grids: Grids,
        initial_positions: str = "random",
        causal: bool = True,
    ):
        super().__init__()
        self.attention = config.attention
        self.source_grids = tuple(grids)  # of the features that come in
        if config.attention == "deformable":
            self.grids = self.source_grids  # of the maps that the queries read
        else:
            self.grids = (max(grids),)
            widths = [sum(widths)]
        self.projectors = nn.ModuleList(_projector(width, dim) for width in widths)
        self.level_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in widths)

        self.queries = nn.Parameter(torch.randn(1, config.num_tokens, dim) * dim**-0.5)
        self.query_norm = nn.LayerNorm(dim)
        self.query_positions = position_table(config.num_tokens, dim, initial_positions)
        side = math.isqrt(config.num_tokens)
        self.register_buffer("references", _cell_centres(side, side), persistent=False)
        self.layers = nn.ModuleList(SamplerLayer(config, dim, len(self.grids), causal) for _ in range(config.depth))

    def forward(self, features: list[Tensor]) -> Tensor:
        """L tensors (B,N,C) -> region tokens (B,K,D)."""
        maps = self.project(features)  # (B,S,D)
        x = self.query_norm(self.queries).expand(len(maps), -1, -1)  # (B,K,D)
        for layer in self.layers:
            x = layer(x, self.query_positions, self.references, maps, self.grids)  # (B,K,D)
        return x

    def sampling_points(self, features: list[Tensor], chosen: Collection[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """L tensors (B,N,C) -> of the chosen layers where they read: locations (B,K,H,L,P,2) and weights (B,K,H,L,P).

        See ``DeformableAttention.sampling_points``.
        """
        maps, found = self.project(features), {}  # (B,S,D)
        x = self.query_norm(self.queries).expand(len(maps), -1, -1)  # (B,K,D)
        for number, layer in enumerate(self.layers):
            if number in chosen:
                queries = x + self.query_positions
                found[number] = layer.cross_attention.sampling_points(queries, self.references, self.grids)
            x = layer(x, self.query_positions, self.references, maps, self.grids)  # (B,K,D)
        return found

    def points_of_layers(self, features: list[Tensor]) -> list[tuple[str, Tensor, Tensor, Tensor]]:
        """Where the first, a middle and the last layer read L tensors (B,N,C).

        Of each: what it is called, the queries' own places (K,2), locations (B,K,P,2), weights (B,K,P), those of all
        heads and levels together.
        """
        depth = len(self.layers)
        found = self.sampling_points(features, {0, depth // 2, depth - 1})
        return [
            (f"layer {layer + 1} of {depth}", self.references, places.flatten(2, 4), weights.flatten(2))
            for layer, (places, weights) in found.items()  # (B,K,H,L,P,2), (B,K,H,L,P)
        ]

    def project(self, features: list[Tensor]) -> Tensor:
        """L tensors (B,N,C) -> the maps that all layers read, one level after the other: (B,S,D)."""
        if self.attention == "windowed":
            features = [self._concatenate(features)]  # one (B,N,sum C)
        parts = zip(features, self.projectors, self.level_norms, strict=True)
        return torch.cat([norm(projector(level)) for level, projector, norm in parts], dim=1)

    def _concatenate(self, features: list[Tensor]) -> Tensor:
        """All levels on the largest grid, side by side: (B,N,sum C)."""
        height, width = self.grids[0]
        maps = []
        for level, (h, w) in zip(features, self.source_grids, strict=True):
            level_map = level.transpose(1, 2).unflatten(2, (h, w))  # (B,C,h,w)
            if (h, w) != (height, width):
                level_map = F.interpolate(level_map, (height, width), mode="bilinear", align_corners=False)
            maps.append(level_map)
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)


class SamplerLayer(nn.Module):
    """Post-norm: read the maps, attend to the other queries, or causally to the earlier ones, transform."""

    def __init__(self, config: SamplerConfig, dim: int, levels: int, causal: bool):
        super().__init__()
        self.causal = causal
        if config.attention == "deformable":
            self.cross_attention = DeformableAttention(dim, config.heads, levels, config.points)
        else:
            self.cross_attention = WindowedAttention(dim, config.heads, config.window)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, config.heads)
        self.self_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, config.mlp_dim), nn.ReLU(), nn.Linear(config.mlp_dim, dim))
        self.mlp_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, positions: Tensor, references: Tensor, maps: Tensor, grids: Grids) -> Tensor:
        """x (B,K,D), positions (1,K,D), references (K,2), maps (B,S,D) -> (B,K,D)."""
        x = self.cross_norm(x + self.cross_attention(x + positions, references, maps, grids))  # (B,K,D)
        x = self.self_norm(x + self.self_attention(x + positions, causal=self.causal))  # (B,K,D)
        return self.mlp_norm(x + self.mlp(x))  # (B,K,D)


class WindowedAttention(nn.Module):
    """Attention of every query to the cells of one map in a square around its reference point."""

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.window = window
        self.attention = Attention(dim, heads)

    def forward(self, queries: Tensor, references: Tensor, maps: Tensor, grids: Grids) -> Tensor:
        """queries (B,K,D), references (K,2), maps (B,N,D) on the one grid -> (B,K,D)."""
        height, width = grids[0]
        centres = _cell_centres(height, width, references.device)  # (N,2)
        x, y = (references[:, None] - centres[None]).abs().unbind(-1)  # 2 x (K,N)
        reach = self.window / 2 + 1e-4  # in cells; never empty, the window is at least one
        near = (x * width <= reach) & (y * height <= reach)  # (K,N)
        return self.attention(queries, maps, mask=near)


def _projector(width: int, dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, dim, bias=False),
        nn.LayerNorm(dim),
        nn.ReLU(),
        nn.Linear(dim, dim, bias=False),
        nn.LayerNorm(dim),
    )


def _cell_centres(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """(x, y) of the cell centres of a grid over the unit square, in row order: (height*width, 2)."""
    rows = (torch.arange(height, device=device) + 0.5) / height
    columns = (torch.arange(width, device=device) + 0.5) / width
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


RELEASED = (  # in the files of VFMTok and VFMAE; windows were never published
    ("queries", "carrier_tokens"),
    ("query_positions", "slots_pos"),
    ("query_norm", "norm_pre1"),
    ("projectors.*", "projectors.*.mlp"),
    ("level_norms.*", "norm_layers.*"),
    ("layers.*.cross_attention.sampling_offsets", "transformer.layers.*.cross_attn.sampling_offsets"),
    ("layers.*.cross_attention.attention_weights", "transformer.layers.*.cross_attn.attention_weights"),
    ("layers.*.cross_attention.value_proj", "transformer.layers.*.cross_attn.value_proj"),
    ("layers.*.cross_attention.output_proj", "transformer.layers.*.cross_attn.output_proj"),
    ("layers.*.cross_norm", "transformer.layers.*.norm1"),
    ("layers.*.self_attention", "transformer.layers.*.self_attn"),
    ("layers.*.self_norm", "transformer.layers.*.norm3"),
    ("layers.*.mlp.0", "transformer.layers.*.linear1"),
    ("layers.*.mlp.2", "transformer.layers.*.linear2"),
    ("layers.*.mlp_norm", "transformer.layers.*.norm2"),
)
