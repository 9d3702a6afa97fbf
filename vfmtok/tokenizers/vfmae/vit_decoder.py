"""VFMAE's ViT decoder: latents -> a map for the pixel decoder and, in training, encoder features.

Latents become a memory; a class token and mask tokens, one per patch, follow it in the sequence, and everything attends
to everything. Each branch (image, features) has layers of its own: memory and branch read each other, so nothing of one
branch serves the other.

Shapes: B batch, K memory tokens, T tokens of a branch, D width, C latent channels, g and G sides of the image and the
feature grid, F channels of the reconstructed features.
"""

import torch
from torch import Tensor, nn

from vfmtok.layers.attention import xavier_uniform_
from vfmtok.layers.positions import position_table, resample_by_scale
from vfmtok.layers.transformer import TransformerLayer
from vfmtok.tokenizers.vfmae.config import DecoderConfig


class ViTDecoder(nn.Module):
    """See the top of the file.

    Args:
        config: depths, heads, whether features are reconstructed.
        dim: D. channels: of the latents, C. num_tokens: K.
        image_grid: g, side of the map given to the pixel decoder, and of the learned positions of patches.
        feature_grid: G, side of the encoder's last level, the feature branch's target; positions are resampled to it.
        feature_dim: F.
        class_token: whether the features have the encoder's class token first.
        initial_positions: "random" or "sincos".
    """

    def __init__(
        self,
        config: DecoderConfig,
        dim: int,
        channels: int,
        num_tokens: int,
        image_grid: int,
        feature_grid: int,
        feature_dim: int,
        class_token: bool,
        initial_positions: str = "random",
    ):
        super().__init__()
        self.image_grid, self.feature_grid = image_grid, feature_grid
        self.num_features = feature_grid**2 + class_token
        self.from_latents = nn.Linear(channels, dim)
        self.memory_positions = position_table(num_tokens, dim, initial_positions)
        self.memory_norm = nn.LayerNorm(dim)

        class_position = position_table(1, dim, "random")
        patch_positions = position_table(image_grid**2, dim, initial_positions)
        self.patch_positions = nn.Parameter(torch.cat([class_position, patch_positions], dim=1).detach())
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.image_mask_token = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.layers = _layers(config, dim, config.depth)
        if config.reconstruct_features:
            self.feature_mask_token = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
            self.feature_norm = nn.LayerNorm(dim)
            self.feature_layers = _layers(config, dim, config.feature_depth)
            self.to_features = nn.Linear(dim, feature_dim)
        xavier_uniform_(self)

    def forward(self, latents: Tensor, with_features: bool = False) -> tuple[Tensor, Tensor | None]:
        """latents (B,C,h,w) -> image map (B,D,g,g) and features (B,1+G*G,F), None unless asked for.

        Without a class token of the encoder the features are (B,G*G,F).
        """
        z = latents.flatten(2).transpose(1, 2).to(self.from_latents.weight.dtype)  # (B,K,C)
        memory = self.memory_norm(self.from_latents(z) + self.memory_positions)  # (B,K,D)
        image = self.memory_norm(self._branch(self.image_mask_token, self.image_grid))  # (1,1+g*g,D)
        patches = _run(self.layers, memory, image, self.image_grid**2)  # (B,g*g,D)
        image_map = patches.transpose(1, 2).unflatten(2, (self.image_grid, self.image_grid))  # (B,D,g,g)
        if not with_features:
            return image_map, None
        masked = self.feature_norm(self._branch(self.feature_mask_token, self.feature_grid))  # (1,1+G*G,D)
        features = _run(self.feature_layers, memory, masked, self.num_features)  # (B,1+G*G,D)
        return image_map, self.to_features(features)  # (B,1+G*G,F)

    def _branch(self, mask_token: Tensor, grid: int) -> Tensor:
        """[class token, one mask token per patch] with positions: (1,1+grid*grid,D)."""
        cls = self.cls_token + self.patch_positions[:, :1]  # (1,1,D)
        patches = mask_token + resample_by_scale(self.patch_positions[:, 1:], grid)  # (1,grid*grid,D)
        return torch.cat([cls, patches], dim=1)


def _layers(config: DecoderConfig, dim: int, depth: int) -> nn.ModuleList:
    sizes = (dim, config.heads, config.mlp_dim, config.attention_dropout)
    return nn.ModuleList(TransformerLayer(*sizes) for _ in range(depth))


def _run(layers: nn.ModuleList, memory: Tensor, branch: Tensor, count: int) -> Tensor:
    """memory (B,K,D), branch (1,T,D) -> the last ``count`` tokens of the sequence behind all layers: (B,count,D)."""
    x = torch.cat([memory, branch.expand(len(memory), -1, -1)], dim=1)  # (B,K+T,D)
    for layer in layers[:-1]:
        x = layer(x)  # (B,K+T,D)
    return layers[-1](x, last=count)  # (B,count,D)
