"""Keys and values of the slots decoded so far.

Shapes: B batch, H heads, E dimensions of a head, K tokens, n filled slots, c slots in reach.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vfmtok.errors import ConfigError

BLOCK = 32  # slots by which the reach grows
ALIGNMENT = 8  # CUDA's attention with a mask copies masks whose length is no multiple of this


@dataclass
class LayerCache:
    """Keys and values (B,H,c,E) of one layer; slots that are not filled are zeros."""

    keys: Tensor
    values: Tensor

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values (B,T,H,E) into ``slots`` (T,) int64."""
        self.keys.index_copy_(2, slots, keys.transpose(1, 2))
        self.values.index_copy_(2, slots, values.transpose(1, 2))


class KVCache:
    """Static memory for 1+K slots (the class and every token), of which steps see a dense prefix.

    Attention to the n filled slots of a (B,H,1+K,E) tensor would read rows far apart: on CPUs that
    takes two to four times as long as dense ones (bfloat16 products copy them first, and are set up
    again for every n). So the first c slots of all heads lie densely at the front of the
    memory, and move apart when c grows, by ``BLOCK`` at a time; attention masks the c - n slots beyond the filled.

    The batch comes first in memory: the first samples of a cache are a view of it.
    """

    fixed_length: ClassVar[bool] = False  # whether all steps read and write the same memory

    def __init__(self, layers: int, batch: int, heads: int, slots: int, head_dim: int, like: Tensor):
        """Room for ``slots`` slots in the dtype and on the device of ``like``; none is in reach yet."""
        self.batch, self.heads, self.slots, self.head_dim = batch, heads, slots, head_dim
        size = batch * heads * slots * head_dim
        self._memory = [(like.new_empty(size), like.new_empty(size)) for _ in range(layers)]
        self.reach = 0
        self.layers = self._views(0)

    @property
    def phase(self) -> int:
        """Steps of one phase read and write the same memory."""
        return self.reach

    def reserve(self, slots: int) -> None:
        """Bring the first ``slots`` slots into reach, keeping what is in those that already were."""
        if slots <= self.reach:
            return
        reach = min(-(-slots // BLOCK) * BLOCK, self.slots)
        kept = self.reach
        for before, after in zip(self.layers, self._views(reach), strict=True):
            for old, new in ((before.keys, after.keys), (before.values, after.values)):
                old = old.clone()  # the two overlap in memory
                new[:, :, :kept] = old
                new[:, :, kept:] = 0  # a probability of 0 times what lay there might be NaN
        self.reach, self.layers = reach, self._views(reach)

    def mask(self, slot: Tensor) -> Tensor:
        """slot (1,) int64, the last one filled -> (c,) to be added to scores: 0 up to it, -inf after."""
        beyond = torch.arange(self.layers[0].keys.shape[2], device=slot.device) > slot
        return self.layers[0].keys.new_zeros(()).masked_fill(beyond, -torch.inf)

    def first(self, samples: int) -> "KVCache":
        """The cache of the first samples of the batch, in the same memory."""
        part = copy.copy(self)
        size = samples * self.heads * self.slots * self.head_dim
        part._memory = [(keys[:size], values[:size]) for keys, values in self._memory]
        part.batch = samples
        part.layers = part._views(self.reach)
        return part

    def _views(self, reach: int) -> list[LayerCache]:
        shape = (self.batch, self.heads, reach, self.head_dim)
        size = self.batch * self.heads * reach * self.head_dim
        return [LayerCache(keys[:size].view(shape), values[:size].view(shape)) for keys, values in self._memory]


class FixedKVCache(KVCache):
    """All slots are in reach from the start: every step does the same on the same memory, and can be replayed from a
    recording (``cuda_graphs``). Attention reads all slots at every step, over an image about twice as many as are
    filled; the length is rounded up to a multiple of ``ALIGNMENT``.
    """

    fixed_length = True

    def __init__(self, layers: int, batch: int, heads: int, slots: int, head_dim: int, like: Tensor):
        """As ``KVCache``, with zeros in all slots."""
        slots = -(-slots // ALIGNMENT) * ALIGNMENT
        super().__init__(layers, batch, heads, slots, head_dim, like)
        super().reserve(slots)
        beyond = torch.ones(slots, slots, dtype=torch.bool, device=like.device).triu(1)
        self._masks = like.new_zeros(slots, slots).masked_fill_(beyond, -torch.inf)  # row n: of slot n
        self._mask = like.new_empty(1, slots)

    def reserve(self, slots: int) -> None:
        """They are in reach already."""

    def mask(self, slot: Tensor) -> Tensor:
        """As of ``KVCache``, in memory that the next call overwrites."""
        return torch.index_select(self._masks, 0, slot, out=self._mask)[0]


CACHES = {"growing": KVCache, "fixed": FixedKVCache}
BY_DEVICE = {"cuda": "fixed"}  # on all others growing, which reads less


def cache_class(name: str, device: torch.device) -> type[KVCache]:
    """The cache of a name in ``CACHES``, or with "auto" of a device. Raises ConfigError."""
    if name == "auto":
        name = BY_DEVICE.get(device.type, "growing")
    if name not in CACHES:
        raise ConfigError(f"kv_cache must be auto, {' or '.join(CACHES)}, got '{name}'")
    return CACHES[name]
