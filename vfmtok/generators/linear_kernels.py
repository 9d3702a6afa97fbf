"""Which kernel multiplies a few rows by the weights of a linear layer, while a CPU samples token after token.

A step of sampling reads all weights once and multiplies them by one row a sample (two with guidance), so it can be no
faster than memory, and ``F.linear`` can be much slower than that: on an AVX2 CPU by AMD it reads float32 weights at 55%
of the memory's rate for one row and at 30% for two to sixteen. There are three ways:

- "plain": ``F.linear``;
- "transposed": (W x^T)^T, the same product the other way round;
- "packed": weights that were reordered for oneDNN's product, in memory of their own for the time of one ``generate``.

Which one is faster depends on the processor, the number of rows, the shape and the precision, so it is measured, on the
model's own weights, once in a process (``chosen`` says what was found). Results are equal to rounding; bfloat16 takes
a way only if it gave the same bits as "plain", since there rounding would change most images.

The environment variable VFMTOK_SAMPLING_LINEARS overrides the choice: auto (the default), plain, transposed or packed.
"""

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.errors import ConfigError

VARIABLE = "VFMTOK_SAMPLING_LINEARS"
Product = Callable[[Tensor], Tensor]  # (...,I) -> (...,O)

WORTHWHILE_STEPS = 64  # measuring and packing take as long as about eight steps
WORTHWHILE_BYTES = 2**25  # smaller models stay in the caches, where the layers' products take little of a step
MEASURED_BYTES = 2**26  # of the layers of one shape so many are measured: more than fits most caches
CLEARLY_FASTER = 0.87  # of the plain time, or noise would choose


def _plain(weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    return lambda x: F.linear(x, weight, bias)


def _transposed(weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    column = None if bias is None else bias[:, None]  # (O,1)

    def product(x: Tensor) -> Tensor:
        flat = x.reshape(rows, -1).t()  # (I,R)
        out = weight @ flat if column is None else torch.addmm(column, weight, flat)  # (O,R)
        return out.t().contiguous().view(*x.shape[:-1], -1)

    return product


def _packed(weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    # PyTorch offers this to its compiler's own code only; ``packs`` finds out whether this version has it.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


WAYS: dict[str, Callable[[Tensor, Tensor | None, int], Product]] = {
    "plain": _plain,
    "packed": _packed,
    "transposed": _transposed,
}


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this PyTorch packs weights of this dtype on this CPU, and multiplies by them correctly."""
    if not torch.backends.mkldnn.is_available():
        return False
    weight, x = torch.eye(32, dtype=dtype), torch.arange(64, dtype=dtype).view(2, 1, 32)
    try:
        with torch.no_grad():
            return torch.equal(_packed(weight, torch.ones(32, dtype=dtype), 2)(x), x + 1)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


# What a choice depends on: outputs, inputs, bias or not, rows, dtype, threads -> the way, and the seconds of each.
_choices: dict[tuple[Any, ...], tuple[str, dict[str, float]]] = {}


def chosen() -> list[tuple[tuple[int, int], int, torch.dtype, str, dict[str, float]]]:
    """The choices measured in this process: shape (O,I) of the weight, rows, dtype, way, and seconds by every way."""
    return [((key[0], key[1]), key[3], key[4], way, seconds) for key, (way, seconds) in _choices.items()]


class FasterLinears:
    """The linear layers of a model, while it samples on a CPU: a context in which they multiply by the fastest way.

    After the passes that are not measured (a prefix), call ``listen``; after every step ``settle``, which chooses for
    all products that ran plainly because they were new. Outside of the context the model is as it was, and packed
    weights are freed. Where nothing is to be gained it does nothing: on GPUs, under autocast, for sharded weights,
    small models, few steps, and for layers that somebody else has changed.
    """

    def __init__(self, model: nn.Module, steps: int):
        """``steps``: how many steps follow; 0: leave the layers alone. Raises ConfigError for a wrong value of the
        environment variable."""
        self.way, self._new = wanted_way(), []
        self._layers = _usual_linears(model) if self.way != "plain" and steps else []
        if self.way == "auto":
            size = sum(layer.weight.numel() * layer.weight.element_size() for layer in self._layers)
            if steps < WORTHWHILE_STEPS or size < WORTHWHILE_BYTES:
                self._layers = []
        for dtype in {layer.weight.dtype for layer in self._layers}:
            if self.way == "packed" and not packs(dtype):
                raise ConfigError(f"{VARIABLE}=packed: this PyTorch packs no {dtype} weights on this CPU")

    def __enter__(self) -> "FasterLinears":
        for layer in self._layers:
            # The instance's forward goes before the class's, so hooks, names and weights stay as they are.
            vars(layer).setdefault("forward", _Products(layer, self._new))
        return self

    def __exit__(self, *exception: object) -> None:
        for layer in self._layers:
            if getattr(vars(layer).get("forward"), "new", None) is self._new:  # not another thread's
                del vars(layer)["forward"]
        self._layers = []

    def listen(self) -> None:
        """Products that were new so far are none of a step's."""
        self._new.clear()

    def settle(self) -> None:
        """Choose for the new products of the step that ended."""
        if not self._new:
            return
        groups: dict[tuple[Any, ...], list[_Piece]] = {}
        for piece in dict.fromkeys(self._new):
            groups.setdefault(piece.key(), []).append(piece)
        self._new.clear()
        for key, pieces in groups.items():
            for piece in pieces:
                piece.products.forget_other_rows(piece.rows)
            way = self.way
            if way == "auto":
                if key not in _choices:
                    _choices[key] = _measure(pieces)
                way, _ = _choices[key]
            for piece in pieces:
                piece.products.by_piece[piece] = WAYS[way](*piece.tensors(), piece.rows)


def linear_part(layer: nn.Linear, x: Tensor, start: int, stop: int) -> Tensor:
    """x (...,I) -> outputs start...stop-1 of a linear layer, (...,stop-start), by the fastest way while sampling."""
    products = vars(layer).get("forward")
    if isinstance(products, _Products):
        return products.part(x, start, stop)
    return F.linear(x, layer.weight[start:stop], None if layer.bias is None else layer.bias[start:stop])


def wanted_way() -> str:
    """What the environment variable says. Raises ConfigError."""
    way = os.environ.get(VARIABLE) or "auto"
    if way != "auto" and way not in WAYS:
        raise ConfigError(f"{VARIABLE} must be auto, {', '.join(sorted(WAYS))}, got '{way}'")
    return way


class _Products:
    """What a layer calls instead of ``nn.Linear.forward``."""

    def __init__(self, layer: nn.Linear, new: list["_Piece"]):
        self.layer, self.new = layer, new
        self.by_piece: dict[_Piece, Product] = {}

    def __call__(self, x: Tensor) -> Tensor:
        return self.part(x, 0, self.layer.out_features)

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        piece = _Piece(self, x.numel() // self.layer.in_features, start, stop)
        product = self.by_piece.get(piece)
        if product is None:
            self.new.append(piece)
            product = _plain(*piece.tensors(), piece.rows)
        return product(x)

    def forget_other_rows(self, rows: int) -> None:
        """Guidance has ended, say: what was packed for the rows before is in the way."""
        self.by_piece = {piece: product for piece, product in self.by_piece.items() if piece.rows == rows}


class _Piece(NamedTuple):
    """Some outputs of a layer for so many rows."""

    products: "_Products"
    rows: int
    start: int
    stop: int

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """Its weight (stop-start,I) and bias (stop-start,)."""
        layer = self.products.layer
        if self.stop - self.start == layer.out_features:
            return layer.weight, layer.bias
        return layer.weight[self.start : self.stop], None if layer.bias is None else layer.bias[self.start : self.stop]

    def key(self) -> tuple[Any, ...]:
        """What the fastest way depends on."""
        weight, bias = self.tensors()
        return (*weight.shape, bias is not None, self.rows, weight.dtype, torch.get_num_threads())


def _usual_linears(model: nn.Module) -> list[nn.Linear]:
    """Layers that multiply as ``nn.Linear`` does, by weights on a CPU that are whole (FSDP's are not)."""
    if torch.is_autocast_enabled("cpu"):
        return []
    return [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and type(layer.weight) is nn.Parameter
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype in (torch.float32, torch.bfloat16)
    ]


def _measure(pieces: list[_Piece]) -> tuple[str, dict[str, float]]:
    """The fastest way of products of one shape, and the seconds of one product by every way that may be taken."""
    rows, (first, _) = pieces[0].rows, pieces[0].tensors()
    count = max(1, MEASURED_BYTES // (first.numel() * first.element_size()))
    tensors = [piece.tensors() for piece in pieces[:count]]
    x = torch.linspace(-1, 1, rows * first.shape[1]).sin().view(rows, 1, -1).to(first.dtype)
    names = [name for name in WAYS if name != "packed" or packs(first.dtype)]
    products = {name: [WAYS[name](weight, bias, rows) for weight, bias in tensors] for name in names}
    expected = products["plain"][0](x)
    for name in names[1:]:
        if first.dtype != torch.float32 and not torch.equal(products[name][0](x), expected):
            del products[name]
    # Packed weights are other memory, so every way finds the caches full of what it has no use for.
    order = [name for name in ("plain", "packed", "transposed", "packed") if name in products]
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter  # the first runs for us alone
    seconds = dict.fromkeys(products, float("inf"))
    for _ in range(3):
        for name in order:
            start = clock()
            for product in products[name]:
                product(x)
            seconds[name] = min(seconds[name], (clock() - start) / len(tensors))
    fastest = min(seconds, key=seconds.get)
    return (fastest if seconds[fastest] < CLEARLY_FASTER * seconds["plain"] else "plain"), seconds
