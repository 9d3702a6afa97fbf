"""What decoding keeps besides keys and values: on which side of the boundary between holistic tokens and those of the
grid it is, or in which order tokens come."""

from dataclasses import dataclass, field

from torch import Tensor

from vfmtok.generators.kv_cache import KVCache
from vfmtok.generators.token_sampling import TokenSampling


@dataclass(frozen=True)
class HolisticSampling(TokenSampling):
    """The settings of ``GPT.sample`` with holistic tokens."""

    published_boundary: bool = field(default=False, metadata={"help": "embed the last holistic token as Hita did"})


class SegmentedCache(KVCache):
    """A cache that knows on which side of the boundary the next step is.

    Attributes:
        embeds_grid: the token that enters next is embedded by the table of the grid's tokens.
        predicts_grid: the token after it is one of the grid's.
    """

    def __init__(self, boundary: int, published: bool, *args: int | Tensor):
        """``boundary``: the number of holistic tokens; ``published``: see ``GPT.begin``; the rest as ``KVCache``."""
        super().__init__(*args)
        self.boundary, self.published = boundary, published
        self.embeds_grid = self.predicts_grid = False

    def reserve(self, slots: int) -> None:
        super().reserve(slots)
        self.embeds_grid = slots - 1 > self.boundary - self.published  # slot n + 1 holds token n
        self.predicts_grid = slots > self.boundary


class OrderedCache(KVCache):
    """A cache of tokens in any order: ``order`` (B,K) int64, the position of the k-th token."""

    def __init__(self, order: Tensor, *args: int | Tensor):
        """The rest as ``KVCache``."""
        super().__init__(*args)
        self.order = order

    def first(self, samples: int) -> "OrderedCache":
        part = super().first(samples)
        part.order = self.order[:samples]
        return part
