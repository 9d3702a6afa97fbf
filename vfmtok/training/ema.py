"""The exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vfmtok.training.sharding import is_sharded


class EMA:
    """A running average of the tensors that a model learns, on its device.

    average = decay * average + (1 - decay) * weights; all tensors in a few kernels.

    Args:
        tensors: name -> the model's own tensor (see ``weights.name_maps.own_tensors``), float32.
        decay: of the average.
        warmup: use min(decay, (1 + step) / (10 + step)), so that a short run's average forgets its beginning.
    """

    def __init__(self, tensors: dict[str, Tensor], decay: float, warmup: bool = False):
        self.decay, self.warmup = decay, warmup
        self.live = tensors
        self.average = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, step: int, decay: float | None = None) -> None:
        """After step 0, 1, ..., with another ``decay`` if it is given."""
        if decay is None:
            decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        floats = [name for name, tensor in self.live.items() if tensor.is_floating_point()]
        for sharded in (False, True):  # a buffer is whole where weights are sharded: no kernel takes both
            names = [name for name in floats if is_sharded(self.live[name]) is sharded]
            if names:
                live = [self.live[name].detach() for name in names]
                torch._foreach_lerp_([self.average[name] for name in names], live, 1 - decay)
        for name, tensor in self.live.items():
            if not tensor.is_floating_point():
                self.average[name].copy_(tensor)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model computes with the average within this context. Storage changes hands, nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, tensor in self.live.items():
            if is_sharded(tensor):  # its storage is known to FSDP: there the values change places
                kept = tensor.detach().clone()
                tensor.detach().copy_(self.average[name])
                self.average[name] = kept
            else:
                tensor.data, self.average[name] = self.average[name], tensor.data
