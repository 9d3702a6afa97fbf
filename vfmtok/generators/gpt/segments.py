"""What decoding keeps besides keys and values: on which side of the boundary between holistic tokens and those of the
grid it is, and in which order tokens come."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from torch import Tensor

from vfmtok.generators.kv_cache import KVCache, LayerCache
from vfmtok.generators.token_sampling import TokenSampling


@dataclass(frozen=True)
class HolisticSampling(TokenSampling):
    """The settings of ``GPT.sample`` with holistic tokens."""

    published_boundary: bool = field(default=False, metadata={"help": "embed the last holistic token as Hita did"})


@dataclass
class DecodeState:
    """What sampling keeps between two tokens.

    Attributes:
        order: (B,K) int64, the position of the k-th token, of a model that knows any order.
        boundary: the number of holistic tokens.
        published: see ``GPT.begin``.
        embeds_grid: the token that enters next is embedded by the table of the grid's tokens.
        predicts_grid: the token after it is one of the grid's.
    """

    cache: KVCache
    order: Tensor | None = None
    boundary: int = 0
    published: bool = False
    embeds_grid: bool = False
    predicts_grid: bool = False

    @property
    def layers(self) -> list[LayerCache]:
        return self.cache.layers

    @property
    def phase(self) -> Hashable:
        return self.cache.phase, self.embeds_grid, self.predicts_grid

    def reserve(self, slots: int) -> None:
        self.cache.reserve(slots)
        self.embeds_grid = slots - 1 > self.boundary - self.published  # slot n + 1 holds token n
        self.predicts_grid = slots > self.boundary

    def first(self, samples: int) -> "DecodeState":
        order = None if self.order is None else self.order[:samples]
        return replace(self, cache=self.cache.first(samples), order=order)
