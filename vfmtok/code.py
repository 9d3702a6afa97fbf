"""What a tokenizer makes of an image and a generator learns: discrete ids, or continuous latents.

Everything between the two (caches, generators, evaluation, the demo) reads these facts of ``tokenizer.code`` and never
asks which family made it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vfmtok.errors import ConfigError


@dataclass(frozen=True)
class Segment:
    """A run of tokens with one codebook.

    Attributes:
        count: how many tokens.
        size: rows of their codebook; ids are in [0,size).
        grid: (height, width) where the tokens lie in the image, row by row, or None without a place there.
    """

    count: int
    size: int
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Ids:
    """Discrete: an image is a flat row (K,) int64, one segment after the other."""

    segments: tuple[Segment, ...]

    @property
    def num_tokens(self) -> int:
        """K, tokens of an image."""
        return sum(segment.count for segment in self.segments)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's code: (K,)."""
        return (self.num_tokens,)

    @property
    def cells(self) -> int:
        """Tokens of the last segment: those on the grid, where there are others before it."""
        return self.segments[-1].count

    @property
    def largest_codebook(self) -> int:
        """Rows of the largest codebook: every id is below it."""
        return max(segment.size for segment in self.segments)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Of the only segment; None where there are several or the tokens have no place in the image."""
        return self.segments[0].grid if len(self.segments) == 1 else None

    @property
    def bits(self) -> float:
        """Information in an image's code, in bits."""
        return sum(segment.count * math.log2(segment.size) for segment in self.segments)

    def slices(self) -> list[slice]:
        """Where each segment lies in the flat row."""
        ends = [sum(segment.count for segment in self.segments[: index + 1]) for index in range(len(self.segments))]
        return [slice(end - segment.count, end) for end, segment in zip(ends, self.segments, strict=True)]

    def __str__(self) -> str:
        return " + ".join(f"{segment.count} tokens of {segment.size:,} codes" for segment in self.segments)


@dataclass(frozen=True)
class Latents:
    """Continuous: an image is an array (C,h,w) float32 in the tokenizer's own units.

    A generator that learns normalised latents keeps their mean and standard deviation itself.
    """

    shape: tuple[int, ...]

    @property
    def cells(self) -> int:
        """h * w."""
        return math.prod(self.shape[1:])

    def __str__(self) -> str:
        return f"latents of {' x '.join(map(str, self.shape))}"


Code = Ids | Latents


def check_fits(own: Code, other: Code, source: str) -> None:
    """Raise ConfigError unless a generator's code ``own`` is the one that ``source`` (a tokenizer, a cache) has.

    Where the tokens lie in the image is left out: caches of version 0.1 say only how many there are.
    """
    if _essence(own) != _essence(other):
        raise ConfigError(f"the generator makes {own}, {source} has {other}: they do not belong together")


def _essence(code: Code) -> tuple:
    return code.shape if isinstance(code, Latents) else tuple((s.count, s.size) for s in code.segments)


def code_to_dict(code: Code) -> dict[str, Any]:
    """Plain lists and numbers, ready for JSON."""
    if isinstance(code, Latents):
        return {"latents": list(code.shape)}
    return {"segments": [{"count": s.count, "size": s.size, "grid": s.grid and list(s.grid)} for s in code.segments]}


def code_from_dict(tree: Mapping[str, Any]) -> Code:
    """The inverse of ``code_to_dict``."""
    if "latents" in tree:
        return Latents(tuple(tree["latents"]))
    return Ids(tuple(Segment(s["count"], s["size"], s["grid"] and tuple(s["grid"])) for s in tree["segments"]))


def square_grid(count: int) -> tuple[int, int] | None:
    """(side, side) of a square number of tokens, else None."""
    side = math.isqrt(count)
    return (side, side) if side**2 == count else None
