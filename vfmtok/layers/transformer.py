"""A pre-norm transformer layer: attention, then SwiGLU.

Shapes: B batch, N tokens, D width.
"""

from torch import Tensor, nn

from vfmtok.layers.attention import Attention
from vfmtok.layers.feed_forward import SwiGLU, swiglu_hidden


class TransformerLayer(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float = 0.0):
        """``dropout`` is that of attention weights, in training."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = SwiGLU(dim, swiglu_hidden(mlp_dim))

    def forward(self, x: Tensor, causal: bool = False, mask: Tensor | None = None, last: int | None = None) -> Tensor:
        """x (B,N,D) -> (B,N,D). ``mask`` (N,N) is True where a token (row) may look.

        ``last`` without either: only so many tokens, the last, are computed from all, (B,last,D).
        """
        y = self.attention_norm(x)  # (B,N,D)
        if last is None:
            x = x + self.attention(y, causal=causal, mask=mask)  # (B,N,D)
        else:
            x = x[:, -last:] + self.attention(y[:, -last:], y)  # (B,last,D)
        return x + self.mlp(self.mlp_norm(x))
