"""What CUDA graphs do, on a CPU: the operators of a function are noted with the tensors they read and write, and run
again on those.

Like a CUDA graph it knows nothing of what the host decides, nor of tensors that were made elsewhere meanwhile: a step
that depends on such comes out wrong. As on CUDA, reading a value while recording is an error.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedOperators:
    """A ``Recorder``.

    Attributes:
        warmed_up, recorded, run: how many functions were warmed up and recorded, and how many runs there were.
    """

    def __init__(self):
        self.usable, self.warmed_up, self.recorded, self.run = True, 0, 0, 0

    def warm_up(self, function: Callable[[], Tensor]) -> Tensor:
        self.warmed_up += 1
        return function()

    def record(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        with _Noting() as noting:
            output = function()

        def run() -> None:
            self.run += 1
            for operator, arguments, options, made in noting.calls:
                again = operator(*arguments, **options)
                for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                        old.copy_(new)

        return run, output


class _Noting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        if operator in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError("operation not permitted when stream is capturing\nand more that CUDA says")
        made = operator(*arguments, **(options or {}))
        self.calls.append((operator, arguments, options or {}, made))
        return made
