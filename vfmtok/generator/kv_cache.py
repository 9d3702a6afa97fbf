"""Keys and values of the slots decoded so far.

Shapes: B batch, H heads, E dimensions of a head, K tokens, n filled slots.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KVCache:
    """Per layer, keys and values (B,H,1+K,E): one slot for the class and one for every token.

    The slots are allocated once and written in place, so a step copies nothing but its own keys
    and values, and every step of a compiled program finds the same tensors. The batch comes first:
    the first samples of a cache are a view of it.
    """

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, layers: int, batch: int, heads: int, slots: int, head_dim: int, like: Tensor) -> "KVCache":
        """A cache of the dtype and device of ``like``."""
        shape = (batch, heads, slots, head_dim)
        return cls([like.new_empty(shape) for _ in range(layers)], [like.new_empty(shape) for _ in range(layers)])

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values (B,T,H,E) into ``slots`` (T,) int64."""
        self.keys[layer].index_copy_(2, slots, keys.transpose(1, 2))
        self.values[layer].index_copy_(2, slots, values.transpose(1, 2))

    def read(self, layer: int, filled: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B,H,n,E) of the first ``filled`` slots: views."""
        return self.keys[layer][:, :, :filled], self.values[layer][:, :, :filled]

    def first(self, samples: int) -> "KVCache":
        """The cache of the first samples of the batch: views."""
        return KVCache([keys[:samples] for keys in self.keys], [values[:samples] for values in self.values])
