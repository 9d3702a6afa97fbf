"""Multi-head attention with separate q, k, v and output projections.

Shapes: B batch, N queries, M memory tokens, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D / H)) v, through PyTorch's fused attention.

    ``project`` and ``attend`` are the two halves of ``forward``, for callers that share projected
    keys and values between several attentions.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def project(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """queries (B,N,D), memory (B,M,D) -> q (B,H,N,D/H), k and v (B,H,M,D/H)."""
        return (
            self._split_heads(self.q_proj(queries)),  # (B,H,N,D/H)
            self._split_heads(self.k_proj(memory)),  # (B,H,M,D/H)
            self._split_heads(self.v_proj(memory)),  # (B,H,M,D/H)
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """Heads in, concatenated heads out, before the output projection: (B,N,D).

        ``mask`` (N,M) is True where a query may look. ``causal`` needs N == M.
        """
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return out.transpose(1, 2).flatten(2)  # (B,N,D)

    def forward(
        self, queries: Tensor, memory: Tensor | None = None, causal: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """queries (B,N,D) attend to memory (B,M,D), by default to themselves -> (B,N,D)."""
        q, k, v = self.project(queries, queries if memory is None else memory)
        return self.out_proj(self.attend(q, k, v, causal, mask))  # (B,N,D)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B,N,D) -> (B,H,N,D/H)


def xavier_uniform_(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer inside ``module``."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
