"""What can be set in a RAR, and the named sizes."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from vfmtok.code import Code, Ids, Segment
from vfmtok.config import require, require_positive, require_share
from vfmtok.families import config_of_size
from vfmtok.generators.orders import Annealing
from vfmtok.generators.token_sampling import TokenSampling


@dataclass(frozen=True)
class RARConfig:
    """Shape, regularisation and annealing of a RAR, by default RAR-L on VFMTok's tokens."""

    kind: Literal["rar"] = "rar"
    n_layer: int = 24
    n_head: int = 16
    dim: int = 1024
    ffn_hidden: int = 4096
    vocab_size: int = 16384
    num_tokens: int = 256
    num_classes: int = 1000  # one more row embeds "no class" (label dropout, guidance)
    dropout_p: float = 0.1  # after the attention's output projection and in the feed-forward block
    attention_dropout_p: float = 0.1  # on attention probabilities
    label_dropout_p: float = 0.1  # share of the sequences trained without their class
    anneal_start: int | None = 125_000  # the step at which the share of random orders begins to fall from 1
    anneal_end: int | None = 187_500  # the step from which on all are raster; both None: half and 3/4 of the run

    def __post_init__(self):
        sizes = ("n_layer", "n_head", "dim", "ffn_hidden", "vocab_size", "num_tokens", "num_classes")
        require_positive(self, "", *sizes)
        require(self.dim % self.n_head == 0, "dim", f"must be a multiple of n_head = {self.n_head}", self.dim)
        for name in ("dropout_p", "attention_dropout_p", "label_dropout_p"):
            require_share(getattr(self, name), name)
        Annealing(self.anneal_start, self.anneal_end)

    @classmethod
    def fields_of_code(cls, code: Code) -> dict[str, int]:
        """What a RAR must have to learn this code. Raises ConfigError where none can."""
        require(isinstance(code, Ids), "generator.kind rar", "learns ids", code)
        one = len(code.segments) == 1
        require(one, "generator.kind rar", "has one table of ids and one head, for codes of one segment", code)
        return {"vocab_size": code.largest_codebook, "num_tokens": code.num_tokens}

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_head

    @property
    def cache_values(self) -> int:
        """Values of the key-value cache of one image: 2 x layers x (1 + tokens) slots x width."""
        return 2 * self.n_layer * (1 + self.code.num_tokens) * self.dim

    @property
    def code(self) -> Ids:
        """What it learns and samples."""
        side = math.isqrt(self.num_tokens)
        grid = (side, side) if side**2 == self.num_tokens else None
        return Ids((Segment(self.num_tokens, self.vocab_size, grid),))

    @property
    def annealing(self) -> Annealing:
        """From random orders to the raster order."""
        return Annealing(self.anneal_start, self.anneal_end)

    def random_share(self, step: int, run_steps: int | None = None) -> float:
        """The share of the sequences of a step, counted from 0, that train on a random order."""
        return self.annealing.random_share(step, run_steps)


@dataclass(frozen=True)
class RARSampling(TokenSampling):
    """The settings of ``RAR.sample``; the defaults are those of the published evaluation's flags."""

    cfg_scale: float = field(default=16.0, metadata={"label": "Guidance", "help": "1 is none", "range": (1, 20, 0.1)})
    cfg_schedule: Literal["constant", "linear", "cosine", "power-cosine"] = "power-cosine"
    cfg_power: float = field(default=2.75, metadata={"help": "of power-cosine"})


# --------------------------------------------------------------------------------------
# Named sizes
# --------------------------------------------------------------------------------------

RAR_SIZES = {
    "RAR-B": {"n_layer": 24, "n_head": 16, "dim": 768, "ffn_hidden": 3072},  # 285M parameters at 16384 ids
    "RAR-L": {"n_layer": 24, "n_head": 16, "dim": 1024, "ffn_hidden": 4096},  # 493M
    "RAR-XL": {"n_layer": 32, "n_head": 16, "dim": 1280, "ffn_hidden": 5120},  # 995M
    "RAR-XXL": {"n_layer": 40, "n_head": 16, "dim": 1408, "ffn_hidden": 6144},  # 1.5B
}


def rar_config(name: str, **overrides: Any) -> RARConfig:
    """The configuration of a named size, with fields of ``RARConfig`` overridden (see ``config_of_size``)."""
    return config_of_size(RARConfig, RAR_SIZES, name, overrides)
