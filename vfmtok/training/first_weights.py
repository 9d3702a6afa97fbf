"""The first weights of a sharded model: those that one process would draw, while no process holds the whole model.

The model is built on the meta device, where tensors have no memory. What its constructor would have written into them
is noted (``Noted``): the operation, its arguments, and where the random numbers stood. Every random operation is also
carried out on one tensor that is thrown away, so that the numbers after it are those of a model that is built for real.
When the model has been sharded, each tensor is drawn again by itself, this process's slice of it is kept, and the next
one is drawn. A process so holds its share of the model and one tensor; it pays by drawing each of them a second time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OVERWRITING = ("normal_", "uniform_", "zero_", "fill_", "copy_")  # what was in the tensor before does not matter


@dataclass
class Step:
    """One operation on the memory of a tensor.

    Attributes:
        operation: called with the tensor, if it works in place, and ``arguments``.
        view: (size, stride, offset) of the tensor in its memory; None: the operation makes the tensor.
        random: the state of the CPU's random numbers before it, if it draws any.
    """

    operation: Callable
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None
    random: Tensor | None


class Scratch:
    """Memory for one tensor after the other. (Thousands of tensors made and freed between small objects that stay would
    leave the allocator with holes as large as the model.)"""

    def __init__(self):
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, length: int, dtype: torch.dtype) -> Tensor:
        """(length,) of anything, until the next call."""
        size = length * dtype.itemsize
        if len(self.memory) < size:
            self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")  # first frees what it has
            self.memory = torch.empty(size, dtype=torch.uint8, device="cpu")
        return self.memory[:size].view(dtype)


class Noted(TorchDispatchMode):
    """Within this context, notes how tensors on the meta device would have been filled."""

    def __init__(self):
        super().__init__()
        self.scratch = Scratch()
        self.steps: dict[StorageWeakRef, list[Step] | None] = {}  # by memory; None: what is in it can't be repeated

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = operation._schema.name.partition("::")[2]
        out = operation(*args, **kwargs)
        if not isinstance(out, Tensor) or not out.is_meta:
            return out
        if name.endswith("_") and out is args[0]:
            self._note_in_place(operation, name, args, kwargs, repeatable=not any(t.is_meta for t in inputs[1:]))
        elif (memory := StorageWeakRef(out.untyped_storage())) not in self.steps:  # else a view of what is known
            self.steps[memory] = self._made(operation, name, args, kwargs, repeatable=not inputs)
        return out

    def _note_in_place(self, operation: Callable, name: str, args: tuple, kwargs: dict, repeatable: bool) -> None:
        target = args[0]
        view = (tuple(target.shape), target.stride(), target.storage_offset())

        def draw() -> None:
            memory = self.scratch.take(_length(target), target.dtype)
            operation(memory.as_strided(*view), *args[1:], **kwargs)

        random = self._drawn(operation, draw)
        memory = StorageWeakRef(target.untyped_storage())
        step = Step(operation, args[1:], kwargs, view, random)
        whole = target.numel() == _length(target)
        if not repeatable:
            self.steps[memory] = None
        elif name in OVERWRITING and whole:
            self.steps[memory] = [step]
        elif self.steps.get(memory):  # adds to what is there; an untouched tensor has nothing to add to
            self.steps[memory].append(step)
        else:
            self.steps[memory] = None

    def _made(self, operation: Callable, name: str, args: tuple, kwargs: dict, repeatable: bool) -> list[Step] | None:
        if name.startswith("empty"):
            return []
        here = {**kwargs, "device": torch.device("cpu")}
        random = self._drawn(operation, lambda: operation(*args, **here)) if repeatable else None
        return [Step(operation, args, here, None, random)] if repeatable else None

    @staticmethod
    def _drawn(operation: Callable, draw: Callable[[], Any]) -> Tensor | None:
        """Move the random numbers on as ``draw`` does, if the operation is a random one; where they stood before."""
        if torch.Tag.nondeterministic_seeded not in operation.tags:
            return None
        before = torch.get_rng_state()
        draw()
        return before

    def way_to(self, tensor: Tensor) -> Callable[[], Tensor] | None:
        """What gives the values of a tensor of the meta device, on the CPU, until the next one is asked for; None if
        they are not known."""
        steps = self.steps.get(StorageWeakRef(tensor.untyped_storage()))
        if not steps:
            return None
        length, dtype = _length(tensor), tensor.dtype
        place = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())

        def fill() -> Tensor:
            memory = self.scratch.take(length, dtype)
            for step in steps:
                if step.random is not None:
                    torch.set_rng_state(step.random)
                if step.view is None:
                    memory.copy_(step.operation(*step.arguments, **step.keywords).flatten())
                else:
                    step.operation(memory.as_strided(*step.view), *step.arguments, **step.keywords)
            return memory.as_strided(*place)

        return fill


def _length(tensor: Tensor) -> int:
    """Of a tensor's memory, in elements."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


@torch.no_grad()
def build_in_parts(
    build: Callable[[], nn.Module],
    shard: Callable[[nn.Module], None],
    keep: Callable[[Tensor, Tensor], None],
    device: torch.device,
) -> nn.Module:
    """The model that ``build()`` makes with the random numbers as they stand, sharded, its tensors on ``device``.

    Args:
        shard: shards a model in place.
        keep: ``keep(into, value)`` copies of a whole tensor what a sharded one, or a plain one, has to hold.

    Where a constructor computes its weights in a way that can't be repeated tensor by tensor, the model is built whole
    in every process and then sharded.
    """
    start, noted = torch.get_rng_state(), Noted()
    with torch.device("meta"), noted:
        model = build()
    ways = {name: noted.way_to(tensor) for name, tensor in _tensors(model).items()}
    end = torch.get_rng_state()
    if all(ways.values()):
        shard(model)
        model.to_empty(device=device)
        if not _left_on_meta(model):
            for name, tensor in _tensors(model).items():
                keep(tensor, ways[name]())
            torch.set_rng_state(end)
            return model
    torch.set_rng_state(start)
    model = build().to(device)
    shard(model)
    return model


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _left_on_meta(model: nn.Module) -> bool:
    """Whether a module holds a tensor, neither parameter nor buffer, that was computed on the meta device."""
    return any(
        isinstance(value, Tensor) and value.is_meta for module in model.modules() for value in vars(module).values()
    )
