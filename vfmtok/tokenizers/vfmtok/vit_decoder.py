"""The causal ViT decoder: codes -> a map for the pixel decoder and, in training, encoder features.

Codes become a memory; mask tokens, one per patch, follow it in the sequence and read it by causal
attention. The two branches (image, features) see the same memory, which sees neither of them, so
its states, keys and values are computed once for both.

Shapes: B batch, K memory tokens, T tokens of a branch, D width, E code dimensions, g and G sides of
the image and the feature grid, C channels of the reconstructed features.
"""

import torch
from torch import Tensor, nn

from vfmtok.layers.attention import Attention, xavier_uniform_
from vfmtok.layers.feed_forward import SwiGLU, swiglu_hidden
from vfmtok.layers.positions import position_table, resample_by_scale
from vfmtok.tokenizers.vfmtok.config import DecoderConfig


class ViTDecoder(nn.Module):
    """See the top of the file.

    Args:
        config: depth, heads, registers and the ablations (shared layers, shared mask token, ...).
        dim: D. code_dim: E. num_tokens: K.
        image_grid: g, side of the map given to the pixel decoder.
        feature_grid: G, side of the encoder's last level, the feature branch's target.
        feature_dim: C.
        initial_positions: "random" or "sincos".
    """

    def __init__(
        self,
        config: DecoderConfig,
        dim: int,
        code_dim: int,
        num_tokens: int,
        image_grid: int,
        feature_grid: int,
        feature_dim: int,
        initial_positions: str = "random",
    ):
        super().__init__()
        self.config = config
        self.image_grid, self.feature_grid = image_grid, feature_grid
        self.from_codes = nn.Linear(code_dim, dim)
        self.memory_positions = position_table(num_tokens, dim, initial_positions)
        self.memory_norm = nn.LayerNorm(dim)

        cls_position = position_table(1, dim, "random")
        patch_positions = position_table((config.position_grid or feature_grid) ** 2, dim, initial_positions)
        self.patch_positions = nn.Parameter(torch.cat([cls_position, patch_positions], dim=1).detach())
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.registers = nn.Parameter(torch.zeros(1, config.registers, dim)) if config.registers else None
        self.image_mask_token = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.layers = nn.ModuleList(DecoderLayer(config, dim) for _ in range(config.depth))
        if config.reconstruct_features:
            if config.mask_tokens == "separate":
                self.feature_mask_token = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
            if not config.shared:
                self.feature_layers = nn.ModuleList(DecoderLayer(config, dim) for _ in range(config.depth))
            self.feature_norm = nn.LayerNorm(dim)
            self.to_features = nn.Linear(dim, feature_dim)
        xavier_uniform_(self)

    def forward(self, codes: Tensor, with_features: bool = False) -> tuple[Tensor, Tensor | None]:
        """codes (B,K,E) -> image map (B,D,g,g) and features (B,G*G,C), None unless asked for."""
        codes = codes.to(self.from_codes.weight.dtype)
        memory = self.memory_norm(self.from_codes(codes) + self.memory_positions)  # (B,K,D)
        image_tokens = self._branch_tokens(self.image_mask_token, self.image_grid, self.memory_norm)
        if not with_features:
            (image,) = self._run(self.layers, memory, [image_tokens])
            features = None
        else:
            feature_tokens = self._branch_tokens(self._feature_mask(), self.feature_grid, self.feature_norm)
            if self.config.shared:
                image, features = self._run(self.layers, memory, [image_tokens, feature_tokens])
            else:
                (image,) = self._run(self.layers, memory, [image_tokens])
                (features,) = self._run(self.feature_layers, memory, [feature_tokens])
            features = self.to_features(features[:, -(self.feature_grid**2) :])  # (B,G*G,C)
        patches = image[:, -(self.image_grid**2) :]  # (B,g*g,D)
        return patches.transpose(1, 2).unflatten(2, (self.image_grid, self.image_grid)), features

    def _feature_mask(self) -> Tensor:
        return self.feature_mask_token if self.config.mask_tokens == "separate" else self.image_mask_token

    def _branch_tokens(self, mask_token: Tensor, grid: int, norm: nn.LayerNorm) -> Tensor:
        """[CLS, (registers,) one mask token per patch], with positions and normalised: (1,T,D)."""
        cls = self.cls_token + self.patch_positions[:, :1]  # (1,1,D)
        patches = mask_token + resample_by_scale(self.patch_positions[:, 1:], grid)  # (1,grid*grid,D)
        if self.registers is None:
            return norm(torch.cat([cls, patches], dim=1))
        if self.config.register_position == "front":
            return norm(torch.cat([cls, self.registers, patches], dim=1))
        # Last in a causal sequence registers are read by nobody, so they are not computed. The zero
        # keeps them in the graph: their gradient is exactly 0, as published, and DDP finds them used.
        return norm(torch.cat([cls, patches], dim=1)) + 0 * self.registers.sum()

    def _run(self, layers: nn.ModuleList, memory: Tensor, branches: list[Tensor]) -> list[Tensor]:
        """Every branch through the layers, after the memory (B,K,D): a list of (B,T,D)."""
        states = [memory, *(branch.expand(len(memory), -1, -1) for branch in branches)]
        for index, layer in enumerate(layers):
            states = layer(states, memory_is_read_later=index + 1 < len(layers))
        return states[1:]


class DecoderLayer(nn.Module):
    """Pre-norm attention and SwiGLU, causal over [memory, branch] for every branch."""

    def __init__(self, config: DecoderConfig, dim: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, config.heads, config.attention_dropout)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = SwiGLU(dim, swiglu_hidden(config.mlp_dim))

    def forward(self, states: list[Tensor], memory_is_read_later: bool) -> list[Tensor]:
        """[memory (B,K,D), branch (B,T,D), ...] -> the same, transformed.

        The states go through every linear layer as one sequence, and through attention as [memory,
        branch], one branch at a time: the plain causal kernel over the memory's rows as well is faster than a
        masked one without them (26 against 30 ms at 256 + 442 tokens, batch 2, two cores). After the last
        layer nobody reads the memory, and its rows end with attention.
        """
        memory_length, *branch_lengths = (state.shape[1] for state in states)
        skip = 0 if memory_is_read_later else memory_length
        x = torch.cat(states, dim=1)  # (B,K+sum T,D)
        normed = self.attention_norm(x)
        q, k, v = self.attention.project(normed, normed)  # 3 x (B,heads,K+sum T,D/heads)
        attended, start = [], memory_length
        for length in branch_lengths:
            branch = [torch.cat([y[:, :, :memory_length], y[:, :, start : start + length]], dim=2) for y in (q, k, v)]
            out = self.attention.attend(*branch, causal=True)  # (B,K+T,D)
            attended.append(out[:, memory_length if attended else skip :])  # the memory's rows once, if at all
            start += length
        x = x[:, skip:] + self.attention.out_proj(torch.cat(attended, dim=1))
        x = x + self.mlp(self.mlp_norm(x))
        return list(x.split([memory_length - skip, *branch_lengths], dim=1))
