"""A CUDA device without a GPU: tensors with shapes, dtypes and devices but no values.

``FakeCuda`` runs code on them (``torch._subclasses.FakeTensorMode``) and finds what would fail or stall on a real one:

- operands on different devices raise, as they do on CUDA;
- what the host must wait for (``.item()``, ``nonzero``, a Boolean index, a copy between host and GPU) is noted in
  ``waits``, with the line of the package it comes from.

There is no backward pass: autograd's engine has a thread for every real device only.
"""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PACKAGE = str(Path(__file__).parents[1] / "vfmtok")
_aten = torch.ops.aten
_NEEDS_VALUES = {  # the size of what comes out depends on values: CUDA kernels that end in a wait
    _aten.nonzero.default, _aten.masked_select.default, _aten.bincount.default, _aten._unique2.default,
    _aten.unique_dim.default, _aten.repeat_interleave.Tensor, _aten.equal.default,
}  # fmt: skip
_COPIES = {_aten._to_copy.default, _aten.copy_.default}


class FakeCuda(TorchDispatchMode):
    """``with FakeCuda() as cuda``: tensors made within are fake.

    Args:
        bf16: autocast to bfloat16 on CUDA, which ``torch.autocast`` declines to switch on without a GPU.

    Attributes:
        waits: "file:line: operator" of everything that the host would wait for, in order.
    """

    def __init__(self, bf16: bool = False):
        super().__init__()
        self.bf16, self.waits = bf16, []
        self._fake = FakeTensorMode(allow_non_fake_inputs=False)
        self._contexts = contextlib.ExitStack()

    def __enter__(self):
        self._contexts.enter_context(self._fake)
        self._contexts.enter_context(_autocast(self.bf16))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._contexts.close()

    def put(self, module: nn.Module) -> nn.Module:
        """Like ``module.to("cuda")``, in place, of a module built outside, with all that its ``_apply`` moves.

        A submodule with two names is visited twice; the second time PyTorch would swap one fake tensor for another.
        """
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with mock.patch("torch.utils.swap_tensors", lambda *_: None):
                module._apply(lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda"))
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
        self.waits.clear()
        return module

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        options = options or {}
        tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]
        if operator is _aten._local_scalar_dense.default and _on_cuda(tensors):
            self._note(operator)
            return _some_value(tensors[0].dtype)
        if _on_cuda(tensors) and (operator in _NEEDS_VALUES or _has_boolean_index(operator, arguments)):
            self._note(operator)
        if operator is _aten._local_scalar_dense.default:  # the host's own numbers: chance, labels
            try:
                return operator(*arguments, **options)
            except DataDependentOutputException:
                return _some_value(tensors[0].dtype)
        out = operator(*arguments, **options)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        hosted = [t for t in tensors if t.device.type == "cpu" and (t.ndim or operator in _COPIES)]
        # A CPU scalar among CUDA operands travels as an argument of the kernel; ``where`` alone copies it.
        hosted += [t for t in tensors if t.device.type == "cpu" and operator is _aten.where.self]
        if (_on_cuda(tensors) and any(t.device.type == "cpu" for t in made)) or (hosted and _on_cuda(tensors + made)):
            self._note(operator)
        return out

    def _note(self, operator) -> None:
        lines = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
        where = f"{Path(lines[-1].filename).relative_to(PACKAGE)}:{lines[-1].lineno}" if lines else "outside vfmtok"
        self.waits.append(f"{where}: {operator}")


def _some_value(dtype: torch.dtype) -> float | bool | int:
    return 0.0 if dtype.is_floating_point else False if dtype == torch.bool else 0


def _on_cuda(tensors: list[Tensor]) -> bool:
    return any(tensor.device.type == "cuda" for tensor in tensors)


def _has_boolean_index(operator, arguments) -> bool:
    if operator not in (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default):
        return False
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in arguments[1])


@contextlib.contextmanager
def _autocast(bf16: bool) -> Iterator[None]:
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", bf16)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
