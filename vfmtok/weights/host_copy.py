"""A copy of a checkpoint in host memory, to be written while the training goes on changing the tensors themselves.

The room for it is taken once and kept: a copy into it takes as long as the transfer. Of tensors on a GPU it is pinned,
so that the transfer is one by DMA, and in blocks of a power of two, since PyTorch rounds pinned memory up to one.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from vfmtok.weights.saved import Checkpoint
from vfmtok.weights.sharded import is_sharded

BLOCK = 1 << 28  # bytes; a larger tensor has a block of its own
ALIGNED = 64  # bytes that every tensor begins at a multiple of


class HostCopy:
    """Room for the tensors of one checkpoint."""

    def __init__(self):
        self._kept: dict[tuple[str, str], Tensor] = {}  # (part, name) -> this process's values
        self._free = torch.empty(0, dtype=torch.uint8)  # the rest of the last block

    @torch.no_grad()
    def take(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint on the CPU, sharing nothing with the run. The copy before it is overwritten.

        Of sharded tensors this process's slices are copied, and nothing is sent.
        """
        parts = {
            part: {name: self._copy((part, name), tensor.detach()) for name, tensor in tensors.items()}
            for part, tensors in checkpoint.parts.items()
        }
        for device in set(_devices(checkpoint)):
            torch.cuda.current_stream(device).synchronize()
        return replace(checkpoint, parts=parts, numbers=copy.deepcopy(checkpoint.numbers))

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        own = tensor.to_local() if is_sharded(tensor) else tensor
        kept = self._kept.get(key)
        if kept is None or (kept.shape, kept.dtype) != (own.shape, own.dtype):
            kept = self._kept[key] = self._room(own)
        kept.copy_(own, non_blocking=True)
        return _with_slice(tensor, kept) if is_sharded(tensor) else kept

    def _room(self, like: Tensor) -> Tensor:
        """Uninitialised, of this shape and type."""
        size = -(-like.nbytes // ALIGNED) * ALIGNED
        if self._free.numel() < size:
            self._free = torch.empty(max(BLOCK, size), dtype=torch.uint8, pin_memory=like.is_cuda)
        taken, self._free = self._free[: like.nbytes], self._free[size:]
        return taken.view(like.dtype).view(like.shape)


def _devices(checkpoint: Checkpoint) -> Iterator[torch.device]:
    """GPUs that tensors are copied from."""
    return (tensor.device for tensors in checkpoint.parts.values() for tensor in tensors.values() if tensor.is_cuda)


def _with_slice(tensor: Tensor, own: Tensor) -> Tensor:
    """A sharded tensor (DTensor) of the same whole as ``tensor``, with ``own`` as this process's slice.

    DTensor.from_local would move it to the devices of the mesh; this is how torch.compile puts such tensors together.
    """
    names, facts = tensor.__tensor_flatten__()
    inner = {name: getattr(tensor, name) for name in names} | {"_local_tensor": own}
    return type(tensor).__tensor_unflatten__(inner, facts, tensor.shape, tensor.stride())
