"""Long lists of found images in little memory: about ten bytes an image, where a list of tuples takes five hundred.

A list of 44 million files is read from front to back a few times, and its items are hardly ever looked up singly. So it
is kept as compressed bytes, each a block of tuples.
"""

import heapq
import marshal
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

BLOCK = 512  # items that are packed together
RUN = 1 << 16  # items that are sorted at once
_FASTEST = 1  # level of zlib

Item = TypeVar("Item")


class Layout(NamedTuple):
    """How items become what ``marshal`` knows (numbers, text, plain tuples) and are made of that again."""

    plain: Callable[[Any], tuple]
    make: Callable[[tuple], Any]


class Packed(Sequence, Generic[Item]):
    """A list that can be appended to, iterated and sliced; its items can't be changed."""

    def __init__(self, layout: Layout, items: Iterable[Item] = ()):
        self._layout = layout
        self._blocks: list[bytes] = []
        self._ends: list[int] = []  # how many items there are up to the end of each block
        self._last: list[Item] = []  # those that do not fill a block yet
        self._kept: tuple[int, list[Item]] = (-1, [])  # the block that was cut last
        self.extend(items)

    def append(self, item: Item) -> None:
        self._last.append(item)
        if len(self._last) == BLOCK:
            self._close_block()

    def extend(self, items: Iterable[Item]) -> None:
        if isinstance(items, Packed) and items._layout is self._layout:
            self._join(items)
            return
        for item in items:
            self.append(item)

    def where(self, condition: Callable[[Item], bool]) -> "Packed[Item]":
        """The items that meet a condition."""
        return Packed(self._layout, filter(condition, self))

    def map(self, change: Callable[[Item], Item]) -> "Packed[Item]":
        """Other items of the same layout in place of these."""
        return Packed(self._layout, map(change, self))

    def sorted(self, key: Callable[[Item], Any]) -> "Packed[Item]":
        """In the order of ``key``, equal ones as they come; itself if that is so already."""
        if all(one <= next_one for one, next_one in pairwise(map(key, self))):
            return self
        items = iter(self)
        runs = iter(lambda: sorted(islice(items, RUN), key=key), [])
        return Packed(self._layout, heapq.merge(*[Packed(self._layout, run) for run in runs], key=key))

    def between(self, start: int, stop: int) -> Iterator[Item]:
        """Items ``start`` to ``stop`` - 1, one after another."""
        block = bisect_right(self._ends, start)
        place = self._ends[block - 1] if block else 0
        while place < stop and block <= len(self._blocks):
            items = self._unpacked(block)
            yield from islice(items, max(start - place, 0), max(stop - place, 0))
            place, block = place + len(items), block + 1

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) + len(self._last)

    def __iter__(self) -> Iterator[Item]:
        for block in range(len(self._blocks) + 1):
            yield from self._unpacked(block)

    def __getitem__(self, place: int | slice) -> Any:
        start, stop, step = (place if isinstance(place, slice) else slice(place, place + 1)).indices(len(self))
        if not isinstance(place, slice) and not 0 <= place < len(self):
            raise IndexError(place)
        if step != 1:
            raise ValueError("cut without steps: the items are packed one after another")
        block = bisect_right(self._ends, start)
        before = self._ends[block - 1] if block else 0
        if self._kept[0] != block or block == len(self._blocks):
            self._kept = block, self._unpacked(block)
        items = self._kept[1][start - before : stop - before]
        if not isinstance(place, slice):
            return items[0]
        return items if len(items) == stop - start else list(self.between(start, stop))

    def _close_block(self) -> None:
        if self._last:
            content = marshal.dumps(list(map(self._layout.plain, self._last)))
            self._blocks.append(zlib.compress(content, _FASTEST))
            self._ends.append(len(self))
            self._last = []

    def _join(self, other: "Packed[Item]") -> None:
        self._close_block()
        start = len(self)
        self._blocks += other._blocks
        self._ends += [start + end for end in other._ends]
        self._last = list(other._last)

    def _unpacked(self, block: int) -> list[Item]:
        if block == len(self._blocks):
            return self._last
        return list(map(self._layout.make, marshal.loads(zlib.decompress(self._blocks[block]))))


def repeated(texts: Iterable[str]) -> frozenset[int]:
    """The hashes of the texts that come more than once, and perhaps of a pair that have the same hash by chance."""
    hashes = np.fromiter(map(hash, texts), np.int64)
    hashes.sort()
    return frozenset(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
