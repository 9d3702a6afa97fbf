"""The layers of the GPT.

Shapes: B batch, T slots of this call, D width, H heads, E = D/H dimensions of a head, F hidden width of the
feed-forward block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.generators.causal_attention import AttentionPath, cached_attention, causal_attention
from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.generators.gpt.rotary import rotate
from vfmtok.generators.kv_cache import LayerCache
from vfmtok.layers.norms import RMSNorm


class Layer(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, config: GPTConfig, drop_path: float):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.drop_path = nn.Identity()
        if drop_path:
            from timm.layers import DropPath  # seconds, of which other models need nothing

            self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        rotary: Tensor,
        cache: LayerCache | None = None,
        slots: Tensor | None = None,
        mask: Tensor | None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        """x (B,T,D), rotary (2,T,1,E) or (2,B,T,1,E) -> (B,T,D).

        With a cache, x is at its ``slots`` (see ``Attention``).
        """
        x = x + self.drop_path(self.attention(self.attention_norm(x), rotary, cache, slots, mask, added))  # (B,T,D)
        return x + self.drop_path(self.feed_forward(self.ffn_norm(x)))  # (B,T,D)


class Attention(nn.Module):
    """Causal softmax(q k^T / sqrt(E)) v with q, k and v from one packed projection, without biases."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads = config.n_head
        self.path: AttentionPath = "sdpa"
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout_p)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x: Tensor,
        rotary: Tensor,
        cache: LayerCache | None = None,
        slots: Tensor | None = None,
        mask: Tensor | None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        """x (B,T,D) -> (B,T,D), its slots attending among themselves; ``added`` (T,1,H,E) to q and k before rotation.

        With a cache the keys and values are left in its ``slots`` (T,); a single slot then attends to
        all of the cache that ``mask`` (c,) lets it see.
        """
        qkv = self.wqkv(x).unflatten(-1, (3, self.heads, -1))  # (B,T,3,H,E)
        qk, v = qkv[:, :, :2], qkv[:, :, 2]  # (B,T,2,H,E), (B,T,H,E)
        if self.q_norm is not None:
            qk = torch.stack([self.q_norm(qk[:, :, 0]), self.k_norm(qk[:, :, 1])], dim=2)  # (B,T,2,H,E)
        if added is not None:
            qk = qk + added  # (B,T,2,H,E)
        q, k = rotate(qk, rotary).to(v.dtype).unbind(2)  # 2 x (B,T,H,E)
        if cache is not None:
            cache.write(slots, k, v)
        if cache is not None and x.shape[1] == 1:
            out = cached_attention(q, cache.keys, cache.values, mask)  # (B,1,H,E)
        else:
            out = causal_attention(q, k, v, self.path)  # (B,T,H,E)
        return self.dropout(self.wo(out.flatten(2)))  # (B,T,D)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x), without biases."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden, bias=False)
        self.w2 = nn.Linear(config.hidden, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))  # (B,T,F) inside, (B,T,D) out
