"""DiT-DH's second, wide stack (arXiv 2510.11690): it sees the latent, and per token what the first stack made of it.

Shapes: B batch, N tokens, D1 width of the first stack, D2 of this one, E dimensions of one of its heads.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.generators.diffusion.config import DiTConfig
from vfmtok.generators.diffusion.layers import Block, as_tokens, patch_embedding


class WideHead(nn.Module):
    """Blocks of width D2, each token conditioned by the first stack's state of it. Without a position table."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.head_width
        self.patches = patch_embedding(config, width)
        self.project = nn.Linear(config.width, width) if config.width != width else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, width, config.head_heads) for _ in range(config.head_depth))

    def begin(self, x: Tensor, state: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,C,S,S), the first stack's state (B,N,D1), time (B,D1) before SiLU -> tokens and conditions (B,N,D2)."""
        return as_tokens(self.patches(x)), self.project(F.silu(time[:, None] + state))
