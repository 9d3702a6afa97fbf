"""RAR (arXiv 2411.00776): a transformer that learns the tokens of an image in any order, and draws them row by row.

The sequence is [cls, class, t(o0), t(o1), ...] for an order o, a permutation of the K positions; the state at slot 1+k
predicts token o(k). Two tables of positions are added to the input: where this token lies, and which position is to be
predicted. Every block is modulated by its slot's condition: the class and the slot, never the tokens or their order.

Shapes: B batch, K tokens of an image, T slots of this call (up to 1+K), D width, H heads, E = D/H dimensions of a
head, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vfmtok.code import Ids
from vfmtok.generators.autoregressive import computing_dtype, generate, score_logits
from vfmtok.generators.causal_attention import cached_attention
from vfmtok.generators.counter_random import Draws
from vfmtok.generators.kv_cache import KVCache, LayerCache
from vfmtok.generators.orders import raster, training_orders
from vfmtok.generators.rar.config import RARConfig, RARSampling
from vfmtok.generators.rar.released import RELEASED, SPARE_POSITIONS, fields_of_released
from vfmtok.layers.precision import at_least_float32

EPS = 1e-6  # of all norms
SPARE_SLOTS = 100  # rows of the published table of slots' conditions that no slot reads


@dataclass
class RAROutput:
    """logits (B,K,V) float32, row k being those of the k-th token of the order; loss: float32 scalar, in nats per
    token, or None without a loss."""

    logits: Tensor
    loss: Tensor | None


@dataclass
class DecodeState:
    """What sampling keeps: the cache, and what modulates every slot, computed once for all slots.

    Attributes:
        modulations: of every block [(B,1+K,6D)], and of the head [(B,1+K,2D)] last; empty lists before the prefill.
        order: (B,K), the position of the k-th token.
    """

    cache: KVCache
    modulations: list[list[Tensor]]
    order: Tensor

    @property
    def layers(self) -> list[LayerCache]:
        return self.cache.layers

    @property
    def phase(self) -> int:
        return self.cache.phase

    def reserve(self, slots: int) -> None:
        self.cache.reserve(slots)

    def first(self, samples: int) -> "DecodeState":
        modulations = [[whole[:samples] for whole in kept] for kept in self.modulations]
        return DecodeState(self.cache.first(samples), modulations, self.order[:samples])


class RAR(nn.Module):
    """See the top of the file.

    ``step``, the number of the training step from 0, decides how many orders are random; the training loop sets it, and
    ``run_steps`` by ``begin_run``.
    ``checkpoint_activations`` recomputes the blocks in the backward pass instead of keeping their activations.
    """

    released = RELEASED  # its tensors' names in published files
    fields_of_released = staticmethod(fields_of_released)
    reported_parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "embeddings": ("embeddings", "cls_token", "positions", "target_positions", "slot_conditions"),
        "blocks": ("blocks",),
        "output head": ("head_modulation", "output"),
    }
    sampling = RARSampling  # the class of its sampling settings
    sharded_methods = ("prefill", "decode_step")  # compute with the weights, besides ``forward``
    first_token_slot = 2  # behind cls and the class
    any_order = True

    def __init__(self, config: RARConfig):
        super().__init__()
        self.config, self.checkpoint_activations = config, False
        self.step, self.run_steps = 0, None
        dim, tokens = config.dim, config.num_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        # Rows: the image's tokens, a mask token that nothing reads, the classes, no class.
        self.embeddings = nn.Embedding(config.vocab_size + 1 + config.num_classes + 1, dim)
        self.positions = nn.Parameter(torch.empty(1, tokens + SPARE_POSITIONS, dim))
        self.target_positions = nn.Parameter(torch.empty(1, tokens + SPARE_POSITIONS, dim))
        self.slot_conditions = nn.Parameter(torch.empty(1, tokens + SPARE_SLOTS, dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.head_modulation = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, config.vocab_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: normal(0, 0.02); ones in norms, zeros in biases, modulations and the cls token."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        for table in (self.positions, self.target_positions, self.slot_conditions):
            nn.init.normal_(table, std=0.02)
        for modulation in (self.head_modulation, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(modulation.weight)
        nn.init.zeros_(self.cls_token)

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

    @property
    def layers(self) -> nn.ModuleList:
        """What sharding gathers one at a time."""
        return self.blocks

    def decayed(self) -> set[str]:
        """Names of the parameters that weight decay applies to: the recipe's, not all with two axes."""
        matrices = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2", "modulation", "output")
        names = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, nn.Linear)}
        return {name for name in names if name.removesuffix(".weight").endswith(matrices)} - {
            "head_modulation.weight"
        } | {"cls_token"}

    def begin_run(self, steps: int) -> None:
        """A training of so many steps follows. Raises ConfigError if it ends before all orders are raster."""
        self.config.annealing.check_fits(steps)
        self.run_steps = steps

    def loss(self, code: Tensor, labels: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """code (B,K) int64, row by row, labels (B,) int64 -> {"token": the mean of -log p over all tokens, in nats}.

        In training mode the share ``config.random_share(step, run_steps)`` of the sequences takes a random order, and
        ``label_dropout_p`` of them no class: by ``draws``, or by PyTorch's generator without them. Otherwise raster.
        """
        order = None
        if self.training:
            order = training_orders(code, draws, self.config.random_share(self.step, self.run_steps))
            if draws is None:
                chance = torch.rand(len(code), device=code.device)  # (B,)
            else:
                chance = draws.uniform("orders and labels", 2)[:, 1]  # (B,)
            labels = torch.where(chance < self.config.label_dropout_p, self.null_class, labels)
        return {"token": self(labels, code, order, with_loss=True).loss}

    def held_out(self, code: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """code (B,K), labels (B,) -> (B,) float64 each, of the raster order: "loss", nats per token, and "accuracy",
        the share of tokens that the model holds likeliest."""
        return score_logits(self(labels, code).logits, code, self.code)

    def sample(
        self,
        labels: Tensor,
        *,
        prefix_ids: Tensor | None = None,
        order: Tensor | None = None,
        known: tuple[Tensor, Tensor] | None = None,
        compile: bool = False,
        **settings: Any,
    ) -> Tensor:
        """labels (B,) -> ids (B,K), row by row: see ``vfmtok.generators.autoregressive.generate``."""
        return generate(self, labels, prefix_ids=prefix_ids, order=order, known=known, compile=compile, **settings)

    def forward(self, labels: Tensor, ids: Tensor, order: Tensor | None = None, with_loss: bool = False) -> RAROutput:
        """labels (B,) in [0,num_classes], ids (B,K) in [0,V) row by row, order (B,K), all int64 -> RAROutput.

        Row k of the logits predicts the token at position ``order[:, k]`` from the tokens before it in the order; the
        raster order without one. The loss is the mean of -log softmax(logits)[token].
        """
        tokens = self.config.num_tokens
        if ids.shape[1] != tokens:
            raise ValueError(f"ids must be (B,{tokens}), got {tuple(ids.shape)}")
        order = raster(ids) if order is None else order  # (B,K)
        drawn = ids.gather(1, order)  # (B,K) in the order of the sequence
        x = self._embed(labels, drawn[:, :-1], order)  # (B,1+K,D): cls, class, all tokens but the last
        condition = F.silu(self._conditions(labels))  # (B,1+K,D)
        for block in self.blocks:
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, condition, use_reentrant=False)  # (B,1+K,D)
            else:
                x = block(x, condition)  # (B,1+K,D)
        logits = self._head(x[:, 1:], self.head_modulation(condition[:, 1:]))  # (B,K,V)
        loss = F.cross_entropy(logits.flatten(0, 1), drawn.flatten()) if with_loss else None
        return RAROutput(logits, loss)

    def begin(
        self, labels: Tensor, prefix: Tensor, order: Tensor | None = None, cache: type[KVCache] = KVCache
    ) -> tuple[DecodeState, Tensor]:
        """labels (B,), first tokens of the order (B,P), order (B,K) -> the state, logits (B,V) of the next token."""
        config, batch = self.config, len(labels)
        order = raster(prefix.new_empty(batch, config.num_tokens)) if order is None else order  # (B,K)
        like = torch.empty(0, dtype=computing_dtype(self.output.weight), device=labels.device)
        empty = cache(config.n_layer, batch, config.n_head, 1 + config.num_tokens, config.head_dim, like)
        state = DecodeState(empty, [[] for _ in range(config.n_layer + 1)], order)
        return state, self.prefill(labels, prefix, state)

    def prefill(self, labels: Tensor, prefix: Tensor, state: DecodeState) -> Tensor:
        """Fill an empty state with [cls, class, prefix]: labels (B,), prefix (B,P) -> logits (B,V) of token P."""
        x = self._embed(labels, prefix, state.order)  # (B,2+P,D)
        condition = F.silu(self._conditions(labels))  # (B,1+K,D)
        state.modulations[-1].append(self.head_modulation(condition))
        state.reserve(x.shape[1])
        return self._through_cache(x, torch.arange(x.shape[1], device=x.device), state, condition)  # (B,V)

    def decode_step(self, ids: Tensor, slot: Tensor, state: DecodeState) -> Tensor:
        """One more token: ids (B,) at ``slot`` (1,), which is 2 for the first -> logits (B,V) float32 of the next."""
        number = slot - self.first_token_slot  # (1,): which token of the order this is
        here, target = (state.order.index_select(1, number + ahead) for ahead in (0, 1))  # 2 x (B,1)
        x = self.embeddings(ids)[:, None] + self.positions[0][2 + here] + self.target_positions[0][2 + target]
        return self._through_cache(x, slot, state)  # (B,V)

    def _embed(self, labels: Tensor, drawn: Tensor, order: Tensor) -> Tensor:
        """labels (B,), the first tokens of the order (B,P), order (B,K) -> input of slots 0...1+P: (B,2+P,D)."""
        given = drawn.shape[1]
        classes = self.embeddings(self.config.vocab_size + 1 + labels)  # (B,D)
        x = torch.cat([self.cls_token.expand(len(labels), -1, -1), classes[:, None], self.embeddings(drawn)], dim=1)
        positions = self.positions[0]  # (K+1024,D); row 0 for cls, 1 for the class, 2+p for position p
        lies = torch.cat([positions[:2].expand(len(labels), -1, -1), positions[2 + order[:, :given]]], dim=1)
        predicts = F.pad(self.target_positions[0][2 + order[:, : given + 1]], (0, 0, 1, 0))  # (B,2+P,D); cls: nothing
        return x + lies + predicts

    def _conditions(self, labels: Tensor) -> Tensor:
        """labels (B,) -> (B,1+K,D): the class, and the slot."""
        classes = self.embeddings(self.config.vocab_size + 1 + labels)  # (B,D)
        return classes[:, None] + self.slot_conditions[:, : 1 + self.config.num_tokens]

    def _head(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x (B,T,D), modulation (B,T,2D) -> logits (B,T,V) float32."""
        scale, shift = modulation.chunk(2, dim=-1)  # scale first here, unlike in the blocks
        x = F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift
        return at_least_float32(self.output(x))

    def _through_cache(self, x: Tensor, slots: Tensor, state: DecodeState, condition: Tensor | None = None) -> Tensor:
        """x (B,T,D) at ``slots`` (T,), whose predecessors the cache holds -> logits (B,V) float32 after the last."""
        mask = state.cache.mask(slots[-1:])  # (c,)
        for block, layer, kept in zip(self.blocks, state.layers, state.modulations, strict=False):
            x = block(x, condition, layer, slots, mask, kept)  # (B,T,D)
        return self._head(x[:, -1:], state.modulations[-1][0].index_select(1, slots[-1:]))[:, 0]  # (B,V)


class Block(nn.Module):
    """x += gate1 * attention(modulated norm(x)); x += gate2 * mlp(modulated norm(x))."""

    def __init__(self, config: RARConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim, EPS)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.dim, EPS)
        self.mlp = MLP(config)
        self.modulation = nn.Linear(config.dim, 6 * config.dim)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None,
        cache: LayerCache | None = None,
        slots: Tensor | None = None,
        mask: Tensor | None = None,
        kept: list[Tensor] | None = None,
    ) -> Tensor:
        """x (B,T,D), silu of the conditions of all slots (B,1+K,D) -> (B,T,D).

        With a cache, x is at its ``slots`` (see ``Attention``), and ``kept`` holds the modulation of all slots, which
        the first call leaves there.
        """
        if kept is None:
            modulation = self.modulation(condition)  # (B,1+K,6D), T = 1+K
        else:
            if not kept:
                kept.append(self.modulation(condition))  # (B,1+K,6D)
            modulation = kept[0].index_select(1, slots)  # (B,T,6D)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        y = self.attention_norm(x) * (1 + scale1) + shift1  # (B,T,D)
        x = x + gate1 * self.attention(y, cache, slots, mask)
        y = self.mlp_norm(x) * (1 + scale2) + shift2  # (B,T,D)
        return x + gate2 * self.mlp(y)


class Attention(nn.Module):
    """Causal softmax(q k^T / sqrt(E)) v with layer norms of q and k, and biases."""

    def __init__(self, config: RARConfig):
        super().__init__()
        self.heads, self.attention_dropout_p = config.n_head, config.attention_dropout_p
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.q_norm, self.k_norm = nn.LayerNorm(config.head_dim, EPS), nn.LayerNorm(config.head_dim, EPS)
        self.proj = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout_p)

    def forward(
        self, x: Tensor, cache: LayerCache | None = None, slots: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x (B,T,D) -> (B,T,D), its slots attending among themselves.

        With a cache the keys and values are left in its ``slots`` (T,); a single slot then attends to all of the cache
        that ``mask`` (c,) lets it see.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # 3 x (B,T,H,E)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if cache is not None:
            cache.write(slots, k, v)
        if cache is not None and x.shape[1] == 1:
            out = cached_attention(q, cache.keys, cache.values, mask)  # (B,1,H,E)
        else:
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # 3 x (B,H,T,E)
            dropout = self.attention_dropout_p if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).transpose(1, 2)
        return self.dropout(self.proj(out.flatten(2)))  # (B,T,D)


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, config: RARConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.ffn_hidden)
        self.fc2 = nn.Linear(config.ffn_hidden, config.dim)
        self.dropout = nn.Dropout(config.dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))  # (B,T,F) inside, (B,T,D) out
