"""A LLaMA-style GPT over the tokens of an image, conditioned on a class.

The sequence is [class, t0, t1, ...]; the state at slot n predicts token n. Token n sits at cell
(n // side, n % side) of a square grid, which rotary positions tell the attention.

With ``num_holistic`` = G > 0 (Hita, arXiv 2507.02358) the first G tokens have no place in the image. They have an
embedding and an output head of their own; slots 0...G-1 have learned positions instead of rotary ones, and the grid's
rotary rows begin at slot G.

With ``permuted`` (after RAR, arXiv 2411.00776) the tokens may come in any order o: the state at slot k predicts token
o(k). A token turns by its own cell's rotary row wherever it comes, and a learned vector of the cell that is predicted
next is added to the input of every slot.

Shapes: B batch, K tokens of an image (the holistic ones included), T slots of this call (up to 1+K), D width, H heads,
E = D/H dimensions of a head, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vfmtok.code import Ids
from vfmtok.generators.autoregressive import computing_dtype, generate, score_logits
from vfmtok.generators.causal_attention import AttentionPath, attention_path
from vfmtok.generators.counter_random import Draws
from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.generators.gpt.layers import Layer
from vfmtok.generators.gpt.released import RELEASED, fields_of_released
from vfmtok.generators.gpt.rotary import rotary_table
from vfmtok.generators.gpt.segments import DecodeState, HolisticSampling
from vfmtok.generators.kv_cache import KVCache
from vfmtok.generators.linear_kernels import linear_part
from vfmtok.generators.orders import raster, training_orders
from vfmtok.generators.token_sampling import TokenSampling
from vfmtok.layers.norms import RMSNorm
from vfmtok.layers.precision import at_least_float32


@dataclass
class GPTOutput:
    """logits (B,T,V) float32, the logits of slot n being those of token n; loss: float32 scalar, in nats per
    token (the sum over segments of each one's mean), or None without targets; losses: the means by segment."""

    logits: Tensor
    loss: Tensor | None
    losses: dict[str, Tensor] = field(default_factory=dict)


class GPT(nn.Module):
    """See the top of the file.

    Two attributes may be set at any time: ``checkpoint_activations`` (recompute the layers in the
    backward pass instead of keeping their activations) and, by ``use_attention``, the attention kernel. For orders that
    are annealed the training loop sets ``step``, the number of the step from 0, and ``run_steps``, by ``begin_run``.
    """

    released = RELEASED  # its tensors' names in published files
    fields_of_released = staticmethod(fields_of_released)
    reported_parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "embeddings": (
            "class_embedding",
            "token_embedding",
            "holistic_embedding",
            "holistic_positions",
            "target_positions",
        ),
        "layers": ("layers", "norm"),
        "output head": ("output",),
    }
    sharded_methods = ("prefill", "decode_step")  # compute with the weights, besides ``forward``
    first_token_slot = 1  # behind the class

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.step, self.run_steps = 0, None
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.dim)
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.token_dropout = nn.Dropout(config.token_dropout_p)
        last = max(1, config.n_layer - 1)
        rates = [config.drop_path_rate * index / last for index in range(config.n_layer)]
        self.layers = nn.ModuleList(Layer(config, rate) for rate in rates)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        holistic = config.num_holistic
        self.output = nn.Linear(config.dim, config.vocab_size * (2 if holistic else 1), bias=False)
        self.holistic_embedding = nn.Embedding(config.vocab_size, config.dim) if holistic else None
        self.holistic_positions = nn.Embedding(holistic, config.dim) if holistic else None
        self.target_positions = nn.Embedding(config.num_tokens, config.dim) if config.permuted else None
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
    def sampling(self) -> type[TokenSampling]:
        """The class of its sampling settings."""
        return HolisticSampling if self.config.num_holistic else TokenSampling

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def null_class(self) -> int:
        """The label that stands for no class."""
        return self.config.num_classes

    @property
    def any_order(self) -> bool:
        """Whether tokens may be drawn in another order than row by row."""
        return self.config.permuted

    def begin_run(self, steps: int) -> None:
        """A training of so many steps follows. Raises ConfigError if it ends before all orders are raster."""
        if self.config.permuted:
            self.config.annealing.check_fits(steps)
        self.run_steps = steps

    def fastest_attention(self, device: torch.device, dtype: torch.dtype, batch: int) -> AttentionPath:
        """The faster kernel for training on batches of this size, measured where there is a choice."""
        config = self.config
        return attention_path(device, dtype, batch, self.code.num_tokens, config.n_head, config.head_dim)

    def use_attention(self, path: AttentionPath) -> None:
        """Compute attention over whole sequences with this kernel (see ``attention_path``)."""
        for layer in self.layers:
            layer.attention.path = path

    def loss(self, code: Tensor, labels: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """code (B,K) int64, labels (B,) int64 -> {"token": the mean of -log p over all tokens, in nats}.

        With holistic tokens, "holistic" and "patch": the means over each part.

        In training mode ``draws`` decide which labels are dropped, and with ``permuted`` which orders are taken;
        without them PyTorch's generator does.
        """
        dropped, order = None, None
        if self.config.permuted and self.training:
            order = training_orders(code, draws, self.config.annealing.random_share(self.step, self.run_steps))  # (B,K)
            code = code.gather(1, order)
        if draws is not None and self.training:
            dropped = draws.uniform("label dropout", 1)[:, 0] < self.config.label_dropout_p  # (B,)
        return self(labels, code[:, :-1], targets=code, dropped=dropped, order=order).losses

    def held_out(self, code: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """code (B,K), labels (B,) -> (B,) float64 each: "loss", nats per token, and "accuracy", the share of tokens
        that the model holds likeliest; with holistic tokens also "loss_0" of these and "loss_1" of the others."""
        return score_logits(self(labels, code[:, :-1]).logits, code, self.code)

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
        """labels (B,) -> ids (B,K): see ``vfmtok.generators.autoregressive``; ``published_boundary``: see ``begin``."""
        return generate(self, labels, prefix_ids=prefix_ids, order=order, known=known, compile=compile, **settings)

    def forward(
        self,
        labels: Tensor,
        ids: Tensor,
        targets: Tensor | None = None,
        dropped: Tensor | None = None,
        order: Tensor | None = None,
    ) -> GPTOutput:
        """labels (B,) in [0,num_classes], ids (B,K-1) in [0,V), both int64 -> GPTOutput for t0..t(K-1).

        Fewer ids give the logits of fewer tokens. targets (B,K) are the tokens to predict; the loss is the mean of
        -log softmax(logits)[target] over all of them, or with holistic tokens the sum of both parts' means. In
        training mode the labels that ``dropped`` (B,) bool marks are
        replaced by the null class; without it, a random share ``label_dropout_p``.

        With ``permuted`` the k-th of all these tokens is the one at position ``order[:, k]``, order (B,K) int64;
        without one, row by row.

        Raises:
            ValueError: too many ids, or an order for a model that knows only one.
        """
        tokens = self.code.num_tokens
        self._check_order(order)
        if ids.shape[1] >= tokens:
            raise ValueError(f"ids must be (B,{tokens - 1}) or shorter, got {tuple(ids.shape)}")
        if self.training and self.config.label_dropout_p > 0:
            if dropped is None:
                dropped = torch.rand(labels.shape, device=labels.device) < self.config.label_dropout_p
            labels = torch.where(dropped, self.null_class, labels)
        x, slots = self._embed(labels, ids), torch.arange(1 + ids.shape[1], device=ids.device)  # (B,T,D), (T,)
        if self.config.permuted:
            order = raster(ids.new_empty(len(labels), tokens)) if order is None else order  # (B,K)
            x = x + self._targets(slots, order)
        x = self.token_dropout(x)  # (B,T,D)
        rotary, added = self._positions(slots, order)  # (2,T,1,E) or (2,B,T,1,E), (T,1,H,E)
        for layer in self.layers:
            if self.checkpoint_activations and self.training:
                x = checkpoint(layer, x, rotary, added=added, use_reentrant=False)  # (B,T,D)
            else:
                x = layer(x, rotary, added=added)  # (B,T,D)
        x, boundary = self.norm(x), self.config.num_holistic
        parts = {"token": self._logits(x, 0)}
        if boundary:
            parts = {"holistic": self._logits(x[:, :boundary], 0), "patch": self._logits(x[:, boundary:], 1)}
        logits = torch.cat(list(parts.values()), dim=1)  # (B,T,V)
        if targets is None:
            return GPTOutput(logits, None)
        # Under autocast too, which computes cross entropy in float32.
        targets = targets.split([part.shape[1] for part in parts.values()], dim=1)
        losses = {
            name: F.cross_entropy(part.flatten(0, 1), target.flatten())
            for (name, part), target in zip(parts.items(), targets, strict=True)
        }
        return GPTOutput(logits, sum(losses.values()), losses)

    def begin(
        self,
        labels: Tensor,
        prefix: Tensor,
        order: Tensor | None = None,
        cache: type[KVCache] = KVCache,
        published_boundary: bool = False,
    ) -> tuple[DecodeState, Tensor]:
        """labels (B,), the first tokens (B,P) -> a state that holds [class, prefix], logits (B,V) of the next token.

        Args:
            cache: of keys and values.
            published_boundary: embed the last holistic token by the table of the patches, as Hita's published sampler
                does, though training does not.

        Raises:
            ValueError: an order for a model that knows only one.
        """
        weight, config = self.output.weight, self.config
        self._check_order(order)
        like = torch.empty(0, dtype=computing_dtype(weight), device=weight.device)
        empty = cache(config.n_layer, len(labels), config.n_head, 1 + self.code.num_tokens, config.head_dim, like)
        if config.permuted and order is None:
            order = raster(prefix.new_empty(len(labels), config.num_tokens))  # (B,K)
        state = DecodeState(empty, order, config.num_holistic, published_boundary)
        return state, self.prefill(labels, prefix, state)

    def prefill(self, labels: Tensor, ids: Tensor, state: DecodeState) -> Tensor:
        """Fill an empty state with [class, ids]: labels (B,), ids (B,P) -> logits (B,V) float32 of token P."""
        x = self._embed(labels, ids, state.published)  # (B,1+P,D)
        state.reserve(x.shape[1])
        return self._through_cache(x, torch.arange(x.shape[1], device=x.device), state)  # (B,V)

    def decode_step(self, ids: Tensor, slot: Tensor, state: DecodeState) -> Tensor:
        """One more token: ids (B,), the tokens just chosen -> logits (B,V) float32 of the tokens after them.

        ``slot`` (1,) int64 is theirs in the cache, which must be in its reach: the class has slot 0, token n slot n+1.
        """
        table = self.token_embedding
        if self.config.num_holistic and not state.embeds_grid:
            table = self.holistic_embedding
        return self._through_cache(table(ids)[:, None], slot, state)  # (B,V)

    def _embed(self, labels: Tensor, ids: Tensor, published_boundary: bool = False) -> Tensor:
        """labels (B,), ids (B,P) -> the input of slots 0...P: (B,1+P,D)."""
        classes, split = self.class_embedding(labels)[:, None], self.config.num_holistic - published_boundary
        if self.config.num_holistic:
            tokens = [self.holistic_embedding(ids[:, :split]), self.token_embedding(ids[:, split:])]
        else:
            tokens = [self.token_embedding(ids)]
        return torch.cat([classes, *tokens], dim=1)

    def _check_order(self, order: Tensor | None) -> None:
        if order is not None and not self.config.permuted:
            raise ValueError("this GPT knows the raster order only: an order needs a model with permuted: true")

    def _targets(self, slots: Tensor, order: Tensor) -> Tensor:
        """slots (T,), order (B,K) -> (B,T,D): which position each slot's state predicts."""
        return self.target_positions(order.index_select(1, slots))

    def _positions(self, slots: Tensor, order: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """slots (T,) -> their rotary rows, and what is added to q and k before (T,1,H,E), if anything.

        The rows are (2,T,1,E), or with an order (B,K) those of the tokens that lie in the slots, (2,B,T,1,E).
        """
        rows = slots if order is None else F.pad(1 + order, (1, 0)).index_select(1, slots)  # (B,T); 0 is the class's
        rotary = self.rotary[:, rows]
        if self.holistic_positions is None:
            return rotary, None
        last = self.config.num_holistic - 1
        added = self.holistic_positions(slots.clamp(max=last)) * (slots <= last)[:, None]  # (T,D)
        return rotary, added.unflatten(-1, (1, self.config.n_head, -1))

    def _logits(self, x: Tensor, segment: int) -> Tensor:
        """x (...,D) after the last norm -> (...,V) float32 by the head of a segment, where there are two."""
        size = self.config.vocab_size
        if not self.config.num_holistic:
            return at_least_float32(self.output(x))
        return at_least_float32(linear_part(self.output, x, segment * size, (segment + 1) * size))

    def _through_cache(self, x: Tensor, slots: Tensor, state: DecodeState) -> Tensor:
        """x (B,T,D) at ``slots`` (T,), whose predecessors the cache holds -> logits (B,V) float32 after the last."""
        if state.order is not None:
            x = x + self._targets(slots, state.order)
        rotary, added = self._positions(slots, state.order)  # (2,T,1,E) or (2,B,T,1,E), (T,1,H,E)
        mask = state.cache.mask(slots[-1:])  # (c,)
        for layer, layer_cache in zip(self.layers, state.layers, strict=True):
            x = layer(x, rotary, layer_cache, slots, mask, added)  # (B,T,D)
        return self._logits(self.norm(x[:, -1]), int(state.predicts_grid))  # (B,V)
