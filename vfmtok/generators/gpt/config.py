"""What can be set in a GPT, and the named sizes."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vfmtok.code import Code, Ids, Segment
from vfmtok.config import require, require_positive, require_share
from vfmtok.families import config_of_size
from vfmtok.generators.orders import Annealing


@dataclass(frozen=True)
class GPTConfig:
    """Shape and regularisation of a GPT, by default GPT-B; ``gpt_config`` fills it for the named sizes."""

    kind: Literal["gpt"] = "gpt"
    n_layer: int = 12
    n_head: int = 12
    dim: int = 768
    ffn_hidden: int | None = None  # None: 2/3 of 4 * dim, rounded up to a multiple of 256
    vocab_size: int = 16384
    num_tokens: int = 256  # a square number: the tokens sit on a grid, row by row
    num_holistic: int = (
        0  # tokens before them that have no place in the image (Hita): an own codebook of vocab_size ids
    )
    num_classes: int = 1000  # one more row, the last, embeds "no class" (label dropout, guidance)
    dropout_p: float = 0.1  # after the attention's and the feed-forward block's output projection
    token_dropout_p: float = 0.1  # on the input embeddings, the class token's included
    label_dropout_p: float = 0.1  # share of the samples trained without their class
    drop_path_rate: float = 0.0  # stochastic depth: share of samples that skip the last layer; rises linearly from 0
    qk_norm: bool = False  # RMSNorm of every head's query and key, before the rotation
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    permuted: bool = False  # trains on permuted orders (RAR's), with positions of what is predicted; draws in any order
    anneal_start: int | None = None  # of permuted: the step at which the share of random orders begins to fall from 1
    anneal_end: int | None = None  # the step from which on all are raster; both None: half and 3/4 of the run
    PINNED: ClassVar[dict[str, Any]] = {  # see weights/hashing.py; never changed, only added to
        "kind": "gpt",
        "n_layer": 12,
        "n_head": 12,
        "dim": 768,
        "ffn_hidden": None,
        "vocab_size": 16384,
        "num_tokens": 256,
        "num_classes": 1000,
        "dropout_p": 0.1,
        "token_dropout_p": 0.1,
        "label_dropout_p": 0.1,
        "drop_path_rate": 0.0,
        "qk_norm": False,
        "rope_base": 10000.0,
        "norm_eps": 1e-5,
        "num_holistic": 0,
        "permuted": False,
        "anneal_start": None,
        "anneal_end": None,
    }

    def __post_init__(self):
        require(self.num_holistic >= 0, "num_holistic", "must be 0 or more", self.num_holistic)
        sizes = ("n_layer", "n_head", "dim", "vocab_size", "num_tokens", "num_classes")
        require_positive(self, "", *sizes, "rope_base", "norm_eps")
        require(self.ffn_hidden is None or self.ffn_hidden > 0, "ffn_hidden", "must be positive", self.ffn_hidden)
        require(self.side**2 == self.num_tokens, "num_tokens", "must be a square number", self.num_tokens)
        # Half of a head turns with the row and half with the column, in pairs of dimensions.
        fits = self.dim % self.n_head == 0 and self.head_dim % 4 == 0
        require(fits, "dim", f"must be a multiple of 4 times n_head = {self.n_head}", self.dim)
        for name in ("dropout_p", "token_dropout_p", "label_dropout_p", "drop_path_rate"):
            require_share(getattr(self, name), name)
        require(not (self.permuted and self.num_holistic), "permuted", "needs num_holistic 0", self.num_holistic)
        unused = self.permuted or self.anneal_start is None
        require(unused, "anneal_start", "belongs to permuted: true", self.anneal_start)
        Annealing(self.anneal_start, self.anneal_end)

    @property
    def annealing(self) -> Annealing:
        """From random orders to the raster order, with ``permuted``."""
        return Annealing(self.anneal_start, self.anneal_end)

    @classmethod
    def fields_of_code(cls, code: Code) -> dict[str, int]:
        """What a GPT must have to learn this code. Raises ConfigError where none can."""
        require(isinstance(code, Ids), "generator.kind gpt", "learns ids", code)
        *holistic, grid = code.segments
        count = sum(segment.count for segment in holistic)
        return {"vocab_size": code.largest_codebook, "num_tokens": grid.count, "num_holistic": count}

    @property
    def side(self) -> int:
        """Cells per side of the token grid."""
        return math.isqrt(self.num_tokens)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_head

    @property
    def hidden(self) -> int:
        """F, the width inside the feed-forward block."""
        return self.ffn_hidden or math.ceil(int(2 * 4 * self.dim / 3) / 256) * 256

    @property
    def cache_values(self) -> int:
        """Values of the key-value cache of one image: 2 x layers x (1 + tokens) slots x width."""
        return 2 * self.n_layer * (1 + self.code.num_tokens) * self.dim

    @property
    def code(self) -> Ids:
        """What it learns and samples."""
        grid = Segment(self.num_tokens, self.vocab_size, (self.side, self.side))
        return Ids((Segment(self.num_holistic, self.vocab_size), grid) if self.num_holistic else (grid,))


# --------------------------------------------------------------------------------------
# Named sizes
# --------------------------------------------------------------------------------------

GPT_SIZES = {
    "GPT-B": {"n_layer": 12, "n_head": 12, "dim": 768},  # 111M parameters, at 16384 ids and 1000 classes
    "GPT-L": {"n_layer": 24, "n_head": 16, "dim": 1024},  # 343M
    "GPT-XL": {"n_layer": 36, "n_head": 20, "dim": 1280},  # 775M
    "GPT-XXL": {"n_layer": 48, "n_head": 24, "dim": 1536},  # 1.4B
    "GPT-XXXL": {"n_layer": 48, "n_head": 40, "dim": 2560},  # 3.9B
    "GPT-1B": {"n_layer": 22, "n_head": 32, "dim": 2048},  # 1.2B
    "GPT-2B": {"n_layer": 48, "n_head": 32, "dim": 1920},  # 2.2B
    "GPT-3B": {"n_layer": 24, "n_head": 32, "dim": 3200},  # 3.1B
    "GPT-7B": {"n_layer": 32, "n_head": 32, "dim": 4096},  # 6.6B
}


def gpt_config(name: str, **overrides: Any) -> GPTConfig:
    """The configuration of a named size, with fields of ``GPTConfig`` overridden (see ``config_of_size``)."""
    return config_of_size(GPTConfig, GPT_SIZES, name, overrides)
