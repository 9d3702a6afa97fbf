"""Sampling an image's tokens, one at a time, through a cache of keys and values: for every generator that offers
``begin`` and ``decode_step``.

Shapes: B batch, R rows (B, or 2B with the unguided copies after the others), K tokens, P prefix, V vocabulary.
"""

from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok.code import Ids
from vfmtok.errors import ConfigError, VFMTokError
from vfmtok.generators.counter_random import exponentials
from vfmtok.generators.cuda_graphs import Replayed, recorder_of
from vfmtok.generators.kv_cache import KVCache, LayerCache, cache_class
from vfmtok.generators.linear_kernels import FasterLinears
from vfmtok.generators.orders import known_first, raster
from vfmtok.generators.token_sampling import Guidance, Sampling, choose, guide


class DecodeState(Protocol):
    """What a model keeps between two tokens: a ``KVCache``, and what else it needs.

    Attributes:
        layers: the cache's.
        phase: what a step is decided by besides tensors: steps of one phase, and as many rows, run the same kernels on
            the same memory.
    """

    layers: list[LayerCache]
    phase: Hashable

    def reserve(self, slots: int) -> None:
        """Bring the first ``slots`` slots into reach."""

    def first(self, samples: int) -> "DecodeState":
        """The state of the first samples of the batch."""


class Autoregressive(Protocol):
    """A generator of ids that this file can sample from.

    Attributes:
        config: with ``vocab_size`` and ``num_classes``.
        code: the ids of an image.
        first_token_slot: the slot of the first token, behind what is there before it.
        null_class: the label that stands for no class.
        any_order: whether tokens may be drawn in another order than row by row.
    """

    config: Any
    code: Ids
    first_token_slot: int
    null_class: int
    any_order: bool

    def begin(
        self, labels: Tensor, prefix: Tensor, order: Tensor | None, cache: type[KVCache], **options: Any
    ) -> tuple[DecodeState, Tensor]:
        """labels (R,), the first tokens (R,P), order (R,K) -> the state, logits (R,V) float32 of the next token.

        ``cache`` is the class of its cache; ``options`` are the model's own, as ``generate`` was given them.
        """

    def decode_step(self, ids: Tensor, slot: Tensor, state: DecodeState) -> Tensor:
        """ids (R,), the tokens just chosen, at ``slot`` (1,) -> logits (R,V) float32 of the tokens after them."""


def generate(
    model: Autoregressive,
    labels: Tensor,
    *,
    cfg_scale: float = 1.5,
    cfg_interval: int = -1,
    cfg_schedule: str = "constant",
    cfg_power: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    greedy: bool = False,
    prefix_ids: Tensor | None = None,
    order: Tensor | None = None,
    known: tuple[Tensor, Tensor] | None = None,
    sample_indices: Tensor | None = None,
    kv_cache: str = "auto",
    compile: bool = False,
    **options: Any,
) -> Tensor:
    """Token ids (B,K) int64 of new images of the classes ``labels`` (B,) int64.

    Everything is computed in the dtype of the model's weights (``model.to(torch.bfloat16)`` halves what
    a step reads) or in autocast's, logits and probabilities in float32. Dropout is off meanwhile.

    Args:
        cfg_scale: logits are unconditional + cfg_scale * (conditional - unconditional); at 1 the
            unconditional half is not computed.
        cfg_interval: with n >= 0 guidance ends, and with it half of the work, after the first n + 2 tokens.
        cfg_schedule: "constant", or "linear", "cosine" or "power-cosine" from 1 up to cfg_scale (see ``Guidance``).
        cfg_power: of "power-cosine".
        temperature, top_k, top_p: applied in this order after guidance (see ``filter_logits``).
        seed: any integer in [0,2^64).
        greedy: the likeliest token every time; temperature, top_k and top_p are ignored.
        prefix_ids: (B,P) int64, a given prefix; the remaining tokens are sampled conditioned on it.
        order: (B,K) int64, the position in the row of the k-th token to be drawn, for models that learned any order;
            ``prefix_ids`` are then the tokens of its first P positions. Without it, row by row.
        known: in-painting: ids (B,K) int64 and a mask (B,K) or (K,) bool, True where the id is kept. The known tokens
            come first in the order, then the others are drawn row by row. A model that draws row by row only takes
            masks of an image's first tokens. Instead of ``prefix_ids`` and ``order``.
        sample_indices: (B,) int64, by default 0..B-1: which sample of the seed each row is.
        kv_cache: "growing" reads as much of the memory for keys and values as is filled; "fixed" reads all of it at
            every step, so that on CUDA the step and the draw are recorded once and replayed from then on, as CUDA
            graphs (not with FSDP). "auto": fixed on CUDA, growing elsewhere. Equal, up to rounding as below.
        compile: run the steps through ``torch.compile`` (once for every new batch size or model).
        options: of the model's ``begin``.

    The random numbers of a token depend on (seed, sample index, token index) only. So sample n is the
    same image whatever batch, process or resumed run draws it, as long as its logits are the same.
    That is where rounding bites: matrix products of another number of rows may add in another order, logits then
    differ in their last bits, and a draw between two tokens that come out equal to these bits goes the other way,
    which makes that image another one from there on. In float32 that is rare (0 of 2400 draws of a GPT-B, batch 1
    against 16); in bfloat16 it was one draw in 130, which meets most images. Where low precision must repeat
    exactly, keep the batch size (pad the last batch); ``compile``, the other ``kv_cache``, another number of threads
    and another device round differently, too. So do the kernels of linear layers in float32 on a CPU, which are chosen
    by a measurement in every process: where float32 must repeat to the last bit, fix one (see ``linear_kernels``).

    Raises:
        ConfigError: a label, id, seed or setting is out of its range, or the model can't draw in this order.
        VFMTokError: the model's logits are not finite.
    """
    guidance = Guidance(cfg_scale, cfg_interval, cfg_schedule, cfg_power)
    sampling = Sampling(temperature, top_k, top_p, greedy)
    _check_inputs(model, labels, prefix_ids, order, seed, sample_indices)
    device = next(model.parameters()).device
    labels = labels.to(device)
    prefix = labels.new_empty(len(labels), 0) if prefix_ids is None else prefix_ids.to(device)
    order, counts = None if order is None else order.to(device), None
    if known is not None:
        if prefix_ids is not None or order is not None:
            raise ConfigError("give known, or prefix_ids and order: known says both")
        prefix, order, counts = _known_first(model, len(labels), *(tensor.to(device) for tensor in known))
    samples = torch.arange(len(labels), device=device) if sample_indices is None else sample_indices
    caching = cache_class(kv_cache, device)
    recorder = recorder_of(model) if caching.fixed_length else None
    replayed = Replayed(recorder), Replayed(recorder)  # of step and draw: kept until the device has been waited for
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            begin = partial(model.begin, cache=caching, **options)
            draw = partial(_draw, sampling, seed, samples.to(device))
            drawn = _decode(model, labels, prefix, order, guidance, begin, draw, compile, replayed, counts)
    finally:
        model.train(training)
    ids = drawn if order is None else torch.empty_like(drawn).scatter_(1, order, drawn)
    if ids.numel() and ids.max() >= model.config.vocab_size:
        causes = "damaged weights, float16 that overflows, or a temperature near 0"
        raise VFMTokError(f"the model's logits are not finite: {causes}")
    return ids


def _known_first(model: Autoregressive, batch: int, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """ids (B,K), mask (B,K) or (K,) bool -> the known tokens first: tokens of the order (B,P), order (B,K) or None for
    row by row, and how many of the tokens are known in each row (B,). Raises ConfigError."""
    tokens = model.code.num_tokens
    fits = ids.shape == (batch, tokens) and mask.shape in ((batch, tokens), (tokens,))
    if not fits or mask.dtype != torch.bool or ids.dtype != torch.int64:
        found = f"{tuple(ids.shape)} {ids.dtype} and {tuple(mask.shape)} {mask.dtype}"
        raise ConfigError(f"known must be ids ({batch},{tokens}) int64 and a mask of that shape, bool, got {found}")
    mask = mask.expand(batch, tokens)
    ids = torch.where(mask, ids, 0)
    _check_range("known ids", ids, model.config.vocab_size)
    order, counts = known_first(mask), mask.sum(1)
    if not model.any_order:
        if (order != raster(ids)).any():
            kind = model.config.kind
            raise ConfigError(
                f"this {kind} draws tokens row by row, so known tokens must be an image's first ones; any mask needs a "
                "generator that learned any order (rar, or gpt with permuted: true)"
            )
        order = None
    most = int(counts.max()) if batch else 0
    first = ids if order is None else ids.gather(1, order)
    return first[:, :most], order, counts


def _decode(
    model: Autoregressive,
    labels: Tensor,
    prefix: Tensor,
    order: Tensor | None,
    guidance: Guidance,
    begin: Callable[..., tuple[DecodeState, Tensor]],
    draw: Callable[[Tensor, Tensor], Tensor],
    compile: bool,
    replayed: tuple[Replayed, Replayed],
    counts: Tensor | None = None,
) -> Tensor:
    """The loop of ``generate``: labels (B,), prefix (B,P), order (B,K) -> ids (B,K) as drawn.

    ``begin`` is the model's with all its options; ``draw`` takes logits (B,V) and a token's number (1,); ``counts``
    (B,): of the prefix so many tokens are given in each row; None: all.
    """
    batch, most = prefix.shape
    fewest = int(counts.min()) if counts is not None and batch else most
    tokens, before = model.code.num_tokens, model.first_token_slot
    guided = guidance.guided_tokens(tokens)
    numbers = torch.arange(tokens, device=labels.device).split(1)  # there already, so that no step has to send its own
    slots = (torch.arange(tokens, device=labels.device) + before).split(1)
    ids = torch.cat([prefix, prefix.new_empty(batch, tokens - most)], dim=1)  # (B,K)
    step, (call_step, call_draw) = _compiled_step(type(model)) if compile else _eager_step, replayed
    state, logits = None, None
    to_draw = tokens - fewest if batch and not compile else 0  # compiled steps have products of their own
    with FasterLinears(model, to_draw) as linears:
        for token in range(fewest, tokens):
            is_guided = token < guided
            if state is None:
                copies = 2 if is_guided else 1
                rows = torch.cat([labels, torch.full_like(labels, model.null_class)]) if is_guided else labels  # (R,)
                orders = None if order is None else order.repeat(copies, 1)
                state, logits = begin(rows, ids[:, :fewest].repeat(copies, 1), orders)  # (R,V)
                linears.listen()
            else:
                if token == guided:  # the unguided copies have done their work
                    state = state.first(batch)
                chosen = ids[:, token - 1].clamp(max=model.config.vocab_size - 1)  # (B,); see ``choose`` on NaN
                state.reserve(before + token)
                chosen = torch.cat([chosen, chosen]) if is_guided else chosen
                phase = len(chosen), state.phase
                logits = call_step(phase, partial(step, model, state), chosen, slots[token - 1])  # (R,V)
                linears.settle()
            if is_guided:
                logits = guide(logits, guidance.scale_at(token, tokens))  # (B,V)
            chosen = call_draw("draw", draw, logits, numbers[token])  # (B,)
            ids[:, token] = chosen if token >= most else torch.where(counts > token, ids[:, token], chosen)
    return ids


def _draw(sampling: Sampling, seed: int, samples: Tensor, logits: Tensor, number: Tensor) -> Tensor:
    """samples (B,), logits (B,V), number (1,) of the token -> ids (B,); see ``choose``."""
    draws = None if sampling.greedy else exponentials(seed, samples, number, logits.shape[1])  # (B,V)
    return choose(logits, sampling, draws)


def computing_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that projections by ``weight`` will have: autocast's where it is on."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def score_logits(logits: Tensor, ids: Tensor, code: Ids) -> dict[str, Tensor]:
    """logits (B,K,V), the ids they predict (B,K) -> what ``Generator.held_out`` gives, (B,) float64 each: "loss", the
    mean of -log p in nats per token, and "accuracy", the share of tokens that have the largest logit. Where the code
    has several segments, "loss_0", "loss_1", ... of each besides."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none")  # (B*K,)
    losses, hits = losses.view_as(ids).double(), logits.argmax(-1) == ids  # (B,K)
    values = {"loss": losses.mean(1), "accuracy": hits.double().mean(1)}
    if len(code.segments) > 1:
        values |= {f"loss_{index}": losses[:, part].mean(1) for index, part in enumerate(code.slices())}
    return values


def _eager_step(model: Autoregressive, state: DecodeState, ids: Tensor, slot: Tensor) -> Tensor:
    return model.decode_step(ids, slot, state)  # looked up in the instance, where FSDP puts its own around it


@cache
def _compiled_step(kind: type) -> Callable[[Autoregressive, DecodeState, Tensor, Tensor], Tensor]:
    """``decode_step`` of a class compiled into one graph for caches of any reach."""
    compiled = torch.compile(kind.decode_step, fullgraph=True)

    def step(model: Autoregressive, state: DecodeState, ids: Tensor, slot: Tensor) -> Tensor:
        for layer in state.layers:
            torch._dynamo.maybe_mark_dynamic(layer.keys, 2)
            torch._dynamo.maybe_mark_dynamic(layer.values, 2)
        return compiled(model, ids, slot, state)

    return step


def _check_inputs(
    model: Autoregressive,
    labels: Tensor,
    prefix_ids: Tensor | None,
    order: Tensor | None,
    seed: int,
    sample_indices: Tensor | None,
) -> None:
    config, tokens = model.config, model.code.num_tokens
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels must be (B,) int64, got {tuple(labels.shape)} {labels.dtype}")
    _check_range("labels", labels, config.num_classes + 1)
    if prefix_ids is not None:
        fits = prefix_ids.ndim == 2 and len(prefix_ids) == len(labels) and prefix_ids.shape[1] <= tokens
        if not fits or prefix_ids.dtype != torch.int64:
            wanted = f"({len(labels)},P) int64 with P <= {tokens}"
            raise ValueError(f"prefix_ids must be {wanted}, got {tuple(prefix_ids.shape)} {prefix_ids.dtype}")
        _check_range("prefix_ids", prefix_ids, config.vocab_size)
    if order is not None:
        if not model.any_order:
            raise ConfigError(f"this {type(model).__name__} draws tokens row by row only: order can't be given")
        whole = torch.arange(tokens, device=order.device).expand(len(labels), -1)
        if order.shape != whole.shape or order.dtype != torch.int64 or not torch.equal(order.sort(1).values, whole):
            raise ConfigError(f"order must be permutations ({len(labels)},{tokens}) int64")
    if sample_indices is not None:
        if sample_indices.shape != labels.shape or sample_indices.dtype != torch.int64:
            shape = tuple(sample_indices.shape)
            raise ValueError(f"sample_indices must be ({len(labels)},) int64, got {shape} {sample_indices.dtype}")
        _check_range("sample_indices", sample_indices, 2**63)
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed must be in [0,2^64), got {seed}")


def _check_range(name: str, values: Tensor, end: int) -> None:
    """Raise ConfigError unless all values are in [0,end). One wait for the device, where they are on one."""
    if values.numel():
        smallest, largest = torch.stack(values.aminmax()).tolist()
        if not 0 <= smallest <= largest < end:
            raise ConfigError(f"{name} must be in [0,{end}), got {smallest} to {largest}")
