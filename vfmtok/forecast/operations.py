"""Every operation of a training pass, with its FLOPs and the bytes it moves, and what is kept for the backward pass.

The pass is carried out on fake tensors, which have shapes and no content, with two and with three images: what does not
grow with the batch (weights) and what does (activations) follow from the two. FLOPs are counted as in
``evaluation.model_size``; those of backward passes as they come, no factor of three is assumed.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from vfmtok.layers import deformable_attention  # noqa: F401 - defines operations that are counted below
from vfmtok.layers.frozen import Frozen

_aten, _own = torch.ops.aten, torch.ops.vfmtok


def _on_shapes(formula: Callable[..., int]) -> Callable[..., int]:
    """``formula`` called with shapes instead of tensors."""

    def flops(*args, out_val=None, **kwargs) -> int:
        shapes = tree_map(lambda value: tuple(value.shape) if isinstance(value, Tensor) else value, (args, kwargs))
        return formula(*shapes[0], **shapes[1])

    return flops


# By operation: (its arguments, out_val=what it returns) -> FLOPs.
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _on_shapes(lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _on_shapes(
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
    ),
    # Rows (N,J) of a table (R,C): J multiplies and adds for each of the N x C results.
    _own.weighted_row_sum: _on_shapes(lambda table, rows, weights: 2 * math.prod(rows) * table[1]),
}

MOVE_NOTHING = {_aten._unsafe_view.default, _aten.empty_like.default, _aten.empty.memory_format}

Line = tuple[float, float]  # (a, b): a + b B for a batch of B images


def at(line: Line, batch: int) -> float:
    return line[0] + line[1] * batch


@dataclass(frozen=True)
class Operation:
    """One kernel: what it computes and moves.

    Attributes:
        dtype: of its products; None where there are none.
        recomputed: it would run once more, in the backward pass, if activations were recomputed.
    """

    flops: Line
    bytes: Line
    dtype: torch.dtype | None
    recomputed: bool


@dataclass(frozen=True)
class Pass:
    """A forward and a backward pass.

    Attributes:
        operations: in their order.
        kept: bytes that stay from the forward for the backward pass, besides weights.
        kept_recomputing: the same where the blocks are recomputed: their inputs, and the largest of the blocks.
    """

    operations: tuple[Operation, ...]
    kept: Line
    kept_recomputing: Line

    def flops(self, batch: int, recompute: bool = False) -> float:
        return sum(at(op.flops, batch) * (2 if recompute and op.recomputed else 1) for op in self.operations)

    def kept_bytes(self, batch: int, recompute: bool = False) -> float:
        return at(self.kept_recomputing if recompute else self.kept, batch)


def measure(run: Callable[[int, "Watch"], None], weights: Iterable[Tensor], blocks: Iterable[nn.Module] = ()) -> Pass:
    """The pass ``run(batch, watch)``, which is to call ``watch.forward_ends()`` before each backward pass.

    Args:
        weights: are not among what a pass keeps.
        blocks: whose activations may be recomputed.
    """
    weights, blocks, watches = list(weights), list(blocks), []
    for batch in BATCHES:
        with Watch(weights, blocks) as watch:
            run(batch, watch)
        watches.append(watch)
    two, three = watches
    return Pass(
        tuple(_operations(two.operations, three.operations)),
        _line(two.kept, three.kept),
        _line(two.kept_recomputing, three.kept_recomputing),
    )


BATCHES = (2, 3)  # with one image some operations are left out


def _line(two: float, three: float) -> Line:
    return (3 * two - 2 * three, three - two)


def _operations(two: "Counts", three: "Counts") -> Iterator[Operation]:
    """Those of a kind are the same ones in the same order. Where a pass has more of them with more images, they are
    taken together."""
    for kind, found in two.items():
        others = three[kind]
        if len(found) != len(others):
            found, others = ([tuple(map(sum, zip(*rows, strict=True)))] for rows in (found, others))
        for (flops, moved), (more_flops, more_moved) in zip(found, others, strict=True):
            yield Operation(_line(flops, more_flops), _line(moved, more_moved), *kind[1:])


Counts = dict[tuple[Any, torch.dtype | None, bool], list[tuple[int, int]]]  # kind of operation -> (FLOPs, bytes) each


class Kept(dict):
    """Memory -> a tensor in it, which holds it: the address of what is freed may be another's later."""

    def note(self, tensor: Tensor) -> None:
        self.setdefault(memory(tensor), tensor)

    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.values())


class Watch(TorchDispatchMode):
    """Within this context operations are counted and tensors that autograd saves are weighed."""

    def __init__(self, weights: list[Tensor], blocks: list[nn.Module]):
        super().__init__()
        self.operations: Counts = defaultdict(list)
        self.kept, self.kept_recomputing = 0, 0
        self._weights = {memory(tensor) for tensor in weights}
        self._blocks, self._contexts = blocks, contextlib.ExitStack()
        self._begin()

    def _begin(self) -> None:
        self._all, self._outside, self._block = Kept(), Kept(), None
        self._largest, self._depth = 0, 0

    def forward_ends(self) -> None:
        self.kept = max(self.kept, self._all.bytes())
        self.kept_recomputing = max(self.kept_recomputing, self._outside.bytes() + self._largest)
        self._begin()

    def __enter__(self):
        self._contexts.enter_context(_NoDropoutInAttention())
        self._contexts.enter_context(torch.autograd.graph.saved_tensors_hooks(self._saved, lambda tensor: tensor))
        for block in self._blocks:
            for handle in (
                block.register_forward_pre_hook(self._enters, with_kwargs=True),
                block.register_forward_hook(self._leaves),
            ):
                self._contexts.callback(handle.remove)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._contexts.close()
        self._begin()

    def _saved(self, tensor: Tensor) -> Tensor:
        if memory(tensor) not in self._weights:
            self._all.note(tensor)
            (self._outside if self._block is None else self._block).note(tensor)
        return tensor

    def _enters(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        self._depth += 1
        if self._depth == 1 and block.training and torch.is_grad_enabled():
            for tensor in _tensors((args, kwargs)):
                if memory(tensor) not in self._weights:
                    self._outside.note(tensor)
            self._block = Kept()

    def _leaves(self, *_) -> None:
        self._depth -= 1
        if self._depth == 0 and self._block is not None:
            self._largest, self._block = max(self._largest, self._block.bytes()), None

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator is _aten._local_scalar_dense.default:  # a value that a check wants to see
            try:
                return operator(*args, **kwargs)
            except DataDependentOutputException:
                return 0.0 if args[0].is_floating_point() else 0
        out = operator(*args, **kwargs)
        if operator.namespace == "prim" or operator in MOVE_NOTHING:  # asks for a device, names memory
            return out
        formula = FORMULAS.get(operator._overloadpacket)
        flops = int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0
        if flops or not operator.is_view:
            inputs = _tensors((args, kwargs))
            moved = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *_tensors(out)))
            dtype = next((tensor.dtype for tensor in inputs if tensor.is_floating_point()), None) if flops else None
            if moved:
                self.operations[operator, dtype, self._block is not None].append((flops, moved))
        return out


class _NoDropoutInAttention(TorchFunctionMode):
    """GPUs have a fused attention with dropout; the CPU's, which is counted here, takes none."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is nn.functional.scaled_dot_product_attention:
            args, kwargs = args[:4], {**kwargs, "dropout_p": 0.0, **({"is_causal": args[5]} if len(args) > 5 else {})}
        return function(*args, **kwargs)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def memory(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


@contextlib.contextmanager
def faked(*modules: nn.Module) -> Iterator[list[Tensor]]:
    """Within this context the tensors of ``modules``, built on the meta device, are fake, as are all that are made.

    Yields theirs, those of frozen networks that modules hold apart included.
    """
    made: list[Tensor] = []

    def fake(tensor: Tensor) -> Tensor:
        made.append(torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype))
        return made[-1]

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in _each_once(modules):
            module._apply(fake, recurse=False)
        yield made


def _each_once(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """All submodules, inner ones first, those of frozen networks included. PyTorch visits what has two names twice,
    and can't turn a fake tensor into another."""
    found: dict[nn.Module, None] = {}
    waiting = list(modules)
    while waiting:
        for module in waiting.pop().modules():
            if isinstance(module, Frozen):
                waiting.append(module.network)
            else:
                found[module] = None
    return list(reversed(found))
