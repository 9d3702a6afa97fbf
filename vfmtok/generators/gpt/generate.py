"""Sampling images' tokens from a GPT, one at a time, through a cache.

Shapes: B batch, R rows (B, or 2B with the unguided copies after the others), K tokens, P prefix, V vocabulary.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vfmtok.errors import ConfigError, VFMTokError
from vfmtok.generators.counter_random import exponentials
from vfmtok.generators.gpt.kv_cache import KVCache
from vfmtok.generators.token_sampling import Guidance, Sampling, choose, guide

if TYPE_CHECKING:  # the model imports this file
    from vfmtok.generators.gpt.model import GPT


def generate(
    gpt: "GPT",
    labels: Tensor,
    *,
    cfg_scale: float = 1.5,
    cfg_interval: int = -1,
    cfg_schedule: str = "constant",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    greedy: bool = False,
    prefix_ids: Tensor | None = None,
    sample_indices: Tensor | None = None,
    compile: bool = False,
) -> Tensor:
    """Token ids (B,K) int64 of new images of the classes ``labels`` (B,) int64.

    Everything is computed in the dtype of the model's weights (``gpt.to(torch.bfloat16)`` halves what
    a step reads) or in autocast's, logits and probabilities in float32. Dropout is off meanwhile.

    Args:
        cfg_scale: logits are unconditional + cfg_scale * (conditional - unconditional); at 1 the
            unconditional half is not computed.
        cfg_interval: with n >= 0 guidance ends, and with it half of the work, after the first n + 2 tokens.
        cfg_schedule: "constant", or "linear" or "cosine" from 1 up to cfg_scale (see ``Guidance``).
        temperature, top_k, top_p: applied in this order after guidance (see ``filter_logits``).
        seed: any integer in [0,2^64).
        greedy: the likeliest token every time; temperature, top_k and top_p are ignored.
        prefix_ids: (B,P) int64, a given prefix; the remaining tokens are sampled conditioned on it.
        sample_indices: (B,) int64, by default 0..B-1: which sample of the seed each row is.
        compile: run the steps through ``torch.compile`` (once for every new batch size or model).

    The random numbers of a token depend on (seed, sample index, token index) only. So sample n is the
    same image whatever batch, process or resumed run draws it, as long as its logits are the same.
    That is where rounding bites: matrix products of another number of rows may add in another order, logits then
    differ in their last bits, and a draw between two tokens that come out equal to these bits goes the other way,
    which makes that image another one from there on. In float32 that is rare (0 of 2400 draws of a GPT-B, batch 1
    against 16); in bfloat16 it was one draw in 130, which meets most images. Where low precision must repeat
    exactly, keep the batch size (pad the last batch); ``compile``, another number of threads and another
    device round differently, too.

    Raises:
        ConfigError: a label, id, seed or setting is out of its range.
        VFMTokError: the model's logits are not finite.
    """
    guidance = Guidance(cfg_scale, cfg_interval, cfg_schedule)
    sampling = Sampling(temperature, top_k, top_p, greedy)
    _check_inputs(gpt, labels, prefix_ids, seed, sample_indices)
    device = gpt.output.weight.device
    labels = labels.to(device)
    prefix = labels.new_empty(len(labels), 0) if prefix_ids is None else prefix_ids.to(device)
    samples = torch.arange(len(labels)) if sample_indices is None else sample_indices
    training = gpt.training
    gpt.eval()
    try:
        with torch.no_grad():
            ids = _decode(gpt, labels, prefix, guidance, sampling, seed, samples.to(device), compile)
    finally:
        gpt.train(training)
    if ids.numel() and ids.max() >= gpt.config.vocab_size:
        causes = "damaged weights, float16 that overflows, or a temperature near 0"
        raise VFMTokError(f"the model's logits are not finite: {causes}")
    return ids


def _decode(
    gpt: "GPT",
    labels: Tensor,
    prefix: Tensor,
    guidance: Guidance,
    sampling: Sampling,
    seed: int,
    samples: Tensor,
    compile: bool,
) -> Tensor:
    """The loop of ``generate``: labels (B,), prefix (B,P), samples (B,) -> ids (B,K)."""
    batch, given = prefix.shape
    tokens = gpt.config.num_tokens
    guided = guidance.guided_tokens(tokens)
    numbers = torch.arange(tokens, device=labels.device)
    numbers = numbers.split(1)  # on the device already, so that no step has to send its own there
    ids = torch.cat([prefix, prefix.new_empty(batch, tokens - given)], dim=1)  # (B,K)
    step = _compiled_step(type(gpt)) if compile else _eager_step
    kv_cache, logits = None, None
    for token in range(given, tokens):
        is_guided = token < guided
        if kv_cache is None:
            rows = torch.cat([labels, torch.full_like(labels, gpt.null_class)]) if is_guided else labels  # (R,)
            kv_cache = _empty_cache(gpt, len(rows))
            logits = gpt.prefill(rows, prefix.repeat(len(rows) // max(batch, 1), 1), kv_cache)  # (R,V)
        else:
            if token == guided:  # the unguided copies have done their work
                kv_cache = kv_cache.first(batch)
            chosen = ids[:, token - 1].clamp(max=gpt.config.vocab_size - 1)  # (B,); see ``choose`` on NaN
            kv_cache.reserve(1 + token)
            logits = step(gpt, torch.cat([chosen, chosen]) if is_guided else chosen, numbers[token], kv_cache)  # (R,V)
        if is_guided:
            logits = guide(logits, guidance.scale_at(token, tokens))  # (B,V)
        draws = None if sampling.greedy else exponentials(seed, samples, numbers[token], logits.shape[1])  # (B,V)
        ids[:, token] = choose(logits, sampling, draws)  # (B,)
    return ids


def _empty_cache(gpt: "GPT", rows: int) -> KVCache:
    """A cache for ``rows`` sequences, in the dtype that the projections will have."""
    weight, config = gpt.output.weight, gpt.config
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    like = torch.empty(0, dtype=dtype, device=weight.device)
    return KVCache(config.n_layer, rows, config.n_head, 1 + config.num_tokens, config.head_dim, like)


def _eager_step(gpt: "GPT", ids: Tensor, slot: Tensor, kv_cache: KVCache) -> Tensor:
    return gpt.decode_step(ids, slot, kv_cache)  # looked up in the instance, where FSDP puts its own around it


@cache
def _compiled_step(kind: type) -> Callable[["GPT", Tensor, Tensor, KVCache], Tensor]:
    """``GPT.decode_step`` compiled into one graph for caches of any reach."""
    compiled = torch.compile(kind.decode_step, fullgraph=True)

    def step(gpt: "GPT", ids: Tensor, slot: Tensor, kv_cache: KVCache) -> Tensor:
        for layer in kv_cache.layers:
            torch._dynamo.mark_dynamic(layer.keys, 2)
            torch._dynamo.mark_dynamic(layer.values, 2)
        return compiled(gpt, ids, slot, kv_cache)

    return step


def _check_inputs(
    gpt: "GPT", labels: Tensor, prefix_ids: Tensor | None, seed: int, sample_indices: Tensor | None
) -> None:
    config = gpt.config
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels must be (B,) int64, got {tuple(labels.shape)} {labels.dtype}")
    _check_range("labels", labels, config.num_classes + 1)
    if prefix_ids is not None:
        fits = prefix_ids.ndim == 2 and len(prefix_ids) == len(labels) and prefix_ids.shape[1] <= config.num_tokens
        if not fits or prefix_ids.dtype != torch.int64:
            wanted = f"({len(labels)},P) int64 with P <= {config.num_tokens}"
            raise ValueError(f"prefix_ids must be {wanted}, got {tuple(prefix_ids.shape)} {prefix_ids.dtype}")
        _check_range("prefix_ids", prefix_ids, config.vocab_size)
    if sample_indices is not None:
        if sample_indices.shape != labels.shape or sample_indices.dtype != torch.int64:
            shape = tuple(sample_indices.shape)
            raise ValueError(f"sample_indices must be ({len(labels)},) int64, got {shape} {sample_indices.dtype}")
        _check_range("sample_indices", sample_indices, 2**63)
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed must be in [0,2^64), got {seed}")


def _check_range(name: str, values: Tensor, end: int) -> None:
    """Raise ConfigError unless all values are in [0,end)."""
    if values.numel() and not (values.min().item() >= 0 and values.max().item() < end):
        raise ConfigError(f"{name} must be in [0,{end}), got {values.min().item()} to {values.max().item()}")
