"""A LLaMA-style GPT over the tokens of an image, conditioned on a class.

The sequence is [class, t0, t1, ...]; the state at slot n predicts token n. Token n sits at cell
(n // side, n % side) of a square grid, which rotary positions tell the attention.

Shapes: B batch, K tokens of an image, T slots of this call (up to 1+K), D width, H heads,
E = D/H dimensions of a head, V vocabulary, F hidden width of the feed-forward block.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vfmtok.code import Ids
from vfmtok.generators.autoregressive import computing_dtype, generate
from vfmtok.generators.causal_attention import AttentionPath, cached_attention, causal_attention
from vfmtok.generators.counter_random import Draws
from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.generators.gpt.released import RELEASED
from vfmtok.generators.kv_cache import KVCache, LayerCache
from vfmtok.layers.precision import at_least_float32


@dataclass
class GPTOutput:
    """logits (B,T,V) float32, the logits of slot n being those of token n; loss: float32 scalar, in nats per
    token, or None without targets."""

    logits: Tensor
    loss: Tensor | None


class GPT(nn.Module):
    """See the top of the file.

    Two attributes may be set at any time: ``checkpoint_activations`` (recompute the layers in the
    backward pass instead of keeping their activations) and, by ``use_attention``, the attention kernel.
    """

    released = RELEASED  # its tensors' names in published files
    first_token_slot = 1  # behind the class
    any_order = False

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.dim)
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.token_dropout = nn.Dropout(config.token_dropout_p)
        last = max(1, config.n_layer - 1)
        rates = [config.drop_path_rate * index / last for index in range(config.n_layer)]
        self.layers = nn.ModuleList(Layer(config, rate) for rate in rates)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.rotary = rotary_table(config)  # no buffer: a bfloat16 model rotates by float32 angles
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: normal(0, 0.02); ones in norms, zeros in the output head."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
        nn.init.zeros_(self.output.weight)

    def _apply(self, fn, recurse=True):
        """``to``, ``cuda``, ``to_empty``, ...: the table follows the weights' device, never their dtype."""
        super()._apply(fn, recurse)
        self.rotary = rotary_table(self.config).to(self.output.weight.device)
        return self

    @property
    def code(self) -> Ids:
        """What it learns and samples."""
        return self.config.code

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def null_class(self) -> int:
        """The label that stands for no class."""
        return self.config.num_classes

    def use_attention(self, path: AttentionPath) -> None:
        """Compute attention over whole sequences with this kernel (see ``attention_path``)."""
        for layer in self.layers:
            layer.attention.path = path

    def loss(self, code: Tensor, labels: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """code (B,K) int64, labels (B,) int64 -> {"token": the mean of -log p over all tokens, in nats}.

        In training mode ``draws`` decide which labels are dropped; without them PyTorch's generator does.
        """
        dropped = None
        if draws is not None and self.training:
            dropped = draws.uniform("label dropout", 1)[:, 0] < self.config.label_dropout_p  # (B,)
        return {"token": self(labels, code[:, :-1], targets=code, dropped=dropped).loss}

    def sample(self, labels: Tensor, **settings: Any) -> Tensor:
        """labels (B,) -> ids (B,K): see ``vfmtok.generators.autoregressive``."""
        return generate(self, labels, **settings)

    def forward(
        self, labels: Tensor, ids: Tensor, targets: Tensor | None = None, dropped: Tensor | None = None
    ) -> GPTOutput:
        """labels (B,) in [0,num_classes], ids (B,K-1) in [0,V), both int64 -> GPTOutput for t0..t(K-1).

        Fewer ids give the logits of fewer tokens. targets (B,K) are the tokens to predict; the loss is the mean of
        -log softmax(logits)[target] over all of them. In training mode the labels that ``dropped`` (B,) bool marks are
        replaced by the null class; without it, a random share ``label_dropout_p``.
        """
        if ids.shape[1] >= self.config.num_tokens:
            raise ValueError(f"ids must be (B,{self.config.num_tokens - 1}) or shorter, got {tuple(ids.shape)}")
        if self.training and self.config.label_dropout_p > 0:
            if dropped is None:
                dropped = torch.rand(labels.shape, device=labels.device) < self.config.label_dropout_p
            labels = torch.where(dropped, self.null_class, labels)
        x = torch.cat([self.class_embedding(labels)[:, None], self.token_embedding(ids)], dim=1)  # (B,T,D)
        x = self.token_dropout(x)
        rotary = self.rotary[:, : x.shape[1]]  # (2,T,1,E)
        for layer in self.layers:
            if self.checkpoint_activations and self.training:
                x = checkpoint(layer, x, rotary, use_reentrant=False)  # (B,T,D)
            else:
                x = layer(x, rotary)  # (B,T,D)
        logits = at_least_float32(self.output(self.norm(x)))  # (B,T,V)
        # Under autocast too, which computes cross entropy in float32.
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return GPTOutput(logits, loss)

    def begin(self, labels: Tensor, prefix: Tensor, order: Tensor | None = None) -> tuple[KVCache, Tensor]:
        """labels (B,), the first tokens (B,P) -> a cache that holds [class, prefix], logits (B,V) of the next token."""
        weight, config = self.output.weight, self.config
        like = torch.empty(0, dtype=computing_dtype(weight), device=weight.device)
        cache = KVCache(config.n_layer, len(labels), config.n_head, 1 + config.num_tokens, config.head_dim, like)
        return cache, self.prefill(labels, prefix, cache)

    def prefill(self, labels: Tensor, ids: Tensor, cache: KVCache) -> Tensor:
        """Fill an empty cache with [class, ids]: labels (B,), ids (B,P) -> logits (B,V) float32 of token P."""
        x = torch.cat([self.class_embedding(labels)[:, None], self.token_embedding(ids)], dim=1)  # (B,1+P,D)
        cache.reserve(x.shape[1])
        return self._through_cache(x, torch.arange(x.shape[1], device=x.device), cache)  # (B,V)

    def decode_step(self, ids: Tensor, slot: Tensor, cache: KVCache) -> Tensor:
        """One more token: ids (B,), the tokens just chosen -> logits (B,V) float32 of the tokens after them.

        ``slot`` (1,) int64 is theirs in the cache, which must be in its reach: the class has slot 0, token n slot n+1.
        """
        return self._through_cache(self.token_embedding(ids)[:, None], slot, cache)  # (B,V)

    def _through_cache(self, x: Tensor, slots: Tensor, cache: KVCache) -> Tensor:
        """x (B,T,D) at ``slots`` (T,), whose predecessors the cache holds -> logits (B,V) float32 after the last."""
        rotary = self.rotary.index_select(1, slots)  # (2,T,1,E)
        mask = cache.mask(slots[-1:])  # (c,)
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x = layer(x, rotary, layer_cache, slots, mask)  # (B,T,D)
        return at_least_float32(self.output(self.norm(x[:, -1])))  # (B,V)


class Layer(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, config: GPTConfig, drop_path: float):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rotary: Tensor,
        cache: LayerCache | None = None,
        slots: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x (B,T,D), rotary (2,T,1,E) -> (B,T,D); with a cache, x is at its ``slots`` (see ``Attention``)."""
        x = x + self.drop_path(self.attention(self.attention_norm(x), rotary, cache, slots, mask))  # (B,T,D)
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
    ) -> Tensor:
        """x (B,T,D) -> (B,T,D), its slots attending among themselves.

        With a cache the keys and values are left in its ``slots`` (T,); a single slot then attends to
        all of the cache that ``mask`` (c,) lets it see.
        """
        qkv = self.wqkv(x).unflatten(-1, (3, self.heads, -1))  # (B,T,3,H,E)
        qk, v = qkv[:, :, :2], qkv[:, :, 2]  # (B,T,2,H,E), (B,T,H,E)
        if self.q_norm is not None:
            qk = torch.stack([self.q_norm(qk[:, :, 0]), self.k_norm(qk[:, :, 1])], dim=2)  # (B,T,2,H,E)
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


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32, cast back to x's dtype, times a learned weight."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(at_least_float32(x), self.weight.shape, eps=self.eps).to(x.dtype) * self.weight  # as x


def rotary_table(config: GPTConfig) -> Tensor:
    """Cosines and signed sines for ``rotate``: (2,1+K,1,E) float32, on the CPU.

    In each half of a head (the first turns with the row, the second with the column) the pair of
    dimensions (2i, 2i+1) turns by position * base^(-2i/(E/2)). Row 0, the class token's, is all
    zeros, which zeroes its query and key: released weights were trained so.
    """
    half = config.head_dim // 2
    with torch.device("cpu"):  # also where the model is being built on the meta device
        frequencies = config.rope_base ** (-torch.arange(0, half, 2).float() / half)  # (E/4,)
        cell = torch.arange(config.num_tokens)
        positions = torch.stack([cell // config.side, cell % config.side], dim=1)  # (K,2)
        angles = (positions[:, :, None] * frequencies).flatten(1)  # (K,E/2), row half first
        cosine, sine = angles.cos(), angles.sin()
        cosine = torch.stack([cosine, cosine], dim=-1).flatten(1)  # (K,E)
        sine = torch.stack([-sine, sine], dim=-1).flatten(1)  # (K,E)
        return F.pad(torch.stack([cosine, sine]), (0, 0, 1, 0))[:, :, None]  # (2,1+K,1,E)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """x (B,T,2,H,E), rotary (2,T,1,E) -> (B,T,2,H,E) float32: (a,b) -> (a cos - b sin, b cos + a sin) in pairs."""
    x = at_least_float32(x)
    cosine, sine = rotary[:, :, None]  # 2 x (T,1,1,E)
    swapped = x.unflatten(-1, (-1, 2)).roll(1, -1).flatten(-2)  # (a,b) -> (b,a)
    return torch.addcmul(x * cosine, swapped, sine)
