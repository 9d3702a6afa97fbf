"""From logits to a token: guidance, temperature, top-k, top-p, in this order, then one draw.

Shapes: B batch, V vocabulary.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vfmtok.config import require


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans, 2022): how strong it is at every token.

    ``interval`` >= 0 switches it off after the first ``interval`` + 2 tokens; -1 leaves it on. The
    schedules rise to ``scale`` with the share t = (n+1)/K of the tokens: "linear" as 1 + (scale - 1) t,
    "cosine" as 1 + (scale - 1) (1 - cos(pi t)) / 2; "power-cosine" (RAR) likewise with (n/K)^power in the place of t.
    """

    scale: float = 1.0
    interval: int = -1
    schedule: Literal["constant", "linear", "cosine", "power-cosine"] = "constant"
    power: float = 1.0  # of "power-cosine"; at 0 the scale is constant

    def __post_init__(self):
        require(0 <= self.scale < math.inf, "cfg_scale", "must be a number from 0", self.scale)
        require(self.interval >= -1, "cfg_interval", "must be -1 (always on) or more", self.interval)
        known = self.schedule in ("constant", "linear", "cosine", "power-cosine")
        require(known, "cfg_schedule", "must be constant, linear, cosine or power-cosine", self.schedule)
        require(0 <= self.power < math.inf, "cfg_power", "must be a number from 0", self.power)

    def guided_tokens(self, tokens: int) -> int:
        """How many of ``tokens`` are guided: the first so many."""
        if self.scale == 1:
            return 0
        return tokens if self.interval < 0 else min(tokens, self.interval + 2)

    def scale_at(self, token: int, tokens: int) -> float:
        """The scale for ``token`` (from 0) of ``tokens``, if it is guided at all."""
        done = (token + 1) / tokens
        begun = (token / tokens) ** self.power
        rise = {
            "constant": 1.0,
            "linear": done,
            "cosine": (1 - math.cos(math.pi * done)) / 2,
            "power-cosine": (1 - math.cos(math.pi * begun)) / 2,
        }
        return 1 + (self.scale - 1) * rise[self.schedule]


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Greedy takes the largest logit (the first of equals) and ignores the rest."""

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    greedy: bool = False

    def __post_init__(self):
        if self.greedy:
            return
        finite = 0 < self.temperature < math.inf
        require(finite, "temperature", "must be positive (greedy takes the likeliest token)", self.temperature)
        require(self.top_k >= 0, "top_k", "must be 0 (all tokens) or more", self.top_k)
        require(0 < self.top_p <= 1, "top_p", "must be in (0,1]", self.top_p)


@dataclass(frozen=True)
class TokenSampling:
    """The settings of ``autoregressive.generate``, which explains them (``SamplingSettings`` of contract.py)."""

    cfg_scale: float = field(default=1.5, metadata={"label": "Guidance", "help": "1 is none", "range": (1, 10, 0.1)})
    cfg_interval: int = field(default=-1, metadata={"help": "guide the first N + 2 tokens only; -1: all"})
    cfg_schedule: Literal["constant", "linear", "cosine", "power-cosine"] = "constant"
    cfg_power: float = field(default=1.0, metadata={"help": "of power-cosine"})
    temperature: float = field(default=1.0, metadata={"range": (0.1, 2, 0.05)})
    top_k: int = field(default=0, metadata={"label": "Top-k", "help": "0: all"})
    top_p: float = field(default=1.0, metadata={"label": "Top-p", "range": (0.05, 1, 0.05)})
    greedy: bool = field(default=False, metadata={"help": "the likeliest token every time"})
    kv_cache: Literal["auto", "growing", "fixed"] = field(
        default="auto", metadata={"label": "Key/value cache", "help": "auto: fixed on CUDA, otherwise growing"}
    )

    def __post_init__(self):
        Guidance(self.cfg_scale, self.cfg_interval, self.cfg_schedule, self.cfg_power)
        Sampling(self.temperature, self.top_k, self.top_p, self.greedy)

    @property
    def guidance(self) -> str:
        """What names of results and folders say of it: "no CFG", or "CFG", the scale, and what is not by default."""
        if self.cfg_scale == 1:
            return "no CFG"
        words = [f"CFG {self.cfg_scale:g}"]
        words += [f"interval {self.cfg_interval}"] if self.cfg_interval >= 0 else []
        words += [self.cfg_schedule] if self.cfg_schedule != "constant" else []
        words += [f"{self.cfg_power:g}"] if self.cfg_schedule == "power-cosine" else []
        return " ".join(words)


def guide(logits: Tensor, scale: float) -> Tensor:
    """logits (2B,V), conditional then unconditional -> (B,V): unconditional + scale * (conditional - unconditional)."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """logits (B,V) with -inf for tokens that may not be drawn; first top-k, then top-p on what it left.

    top-k keeps the k largest and all that equal the k-th. top-p keeps, from the likeliest down, the
    tokens before which the probabilities sum to at most ``top_p``: the one that crosses it stays.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[:, -1:]  # (B,1)
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)  # 2 x (B,V)
        p = ordered.softmax(dim=-1)
        before = p.cumsum(dim=-1) - p  # (B,V)
        removed = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, order, before > top_p)
        logits = logits.masked_fill(removed, -torch.inf)
    return logits


def choose(logits: Tensor, sampling: Sampling, exponential: Tensor | None) -> Tensor:
    """logits (B,V) float32 -> ids (B,) int64; V, no token, where logits are not finite.

    ``exponential`` (B,V) are independent exponential numbers of mean 1, None if greedy: the token with the largest
    p / exponential is distributed as p (the first of Poisson processes with these rates to fire).
    Inverting the distribution function would take one number instead of V, but every rounding of a logit
    moves all V of its borders. For GPT-B at batch 1 against 16 that gives another token once in
    400 draws in float32, and nearly always in bfloat16; here only the two largest have to be nearly equal.
    """
    if not sampling.greedy:
        logits = filter_logits(logits / sampling.temperature, sampling.top_k, sampling.top_p)
        logits = logits - exponential.log()
    ids = logits.argmax(dim=-1, keepdim=True)  # (B,1)
    return torch.where(logits.gather(1, ids).isfinite(), ids, logits.shape[-1])[:, 0]
