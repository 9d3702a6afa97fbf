"""Parameters, FLOPs and memory of a model, from its configuration alone: no weight is read, drawn or given memory.

A model is built on the meta device; its FLOPs are those of a pass over fake tensors, which have shapes and no content.
So the largest generator is looked at in seconds on a laptop. FLOPs are counted as the field does: two per multiply and
add of every matrix product and convolution, attention over all pairs (a causal mask is not counted as a saving), and
the deformable sampling's weighted sums; norms, activations and softmax are left out.

Shapes: B batch, S image side, K tokens of an image, V vocabulary.
"""

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vfmtok.code import Code, Ids
from vfmtok.encoders.config import EncoderConfig
from vfmtok.errors import WeightsError
from vfmtok.generators import build_generator
from vfmtok.layers import deformable_attention  # noqa: F401 - defines the operation that is counted below
from vfmtok.tokenizers import build_tokenizer
from vfmtok.weights.name_maps import to_released

BYTES = {"fp32": 4, "bf16": 2}  # of a value


@dataclass(frozen=True)
class Part:
    """A part of a model: its parameters, how many of them are trained, and FLOPs for one image."""

    name: str
    parameters: int
    trained: int
    flops: int


@dataclass(frozen=True)
class ModelSize:
    """What a model needs. FLOPs are for one image; of a generator, for all its tokens in one pass."""

    config: Any  # resolved: with what an encoder fills in
    parts: list[Part]
    released_values: int | None  # in a file under the published names; None: a part was never published

    @property
    def code(self) -> Code:
        """What the tokenizer makes, or the generator learns."""
        return self.config.code


@dataclass(frozen=True)
class TokenizerSize(ModelSize):
    encode_flops: int
    training_flops: int  # of a forward pass in training, with what runs only there
    grids: tuple[tuple[int, int], ...] = ()  # (height, width) in cells of every level that its encoder gives
    widths: tuple[int, ...] = ()  # channels of every level

    @property
    def bits(self) -> float | None:
        """Of one image's ids, as they are: the sum of log2(codebook size); None of latents."""
        return self.code.bits if isinstance(self.code, Ids) else None


@dataclass(frozen=True)
class GeneratorSize(ModelSize):
    def cache_values(self) -> int | None:
        """Values of the key-value cache of one image, where the family has one. Guidance takes two."""
        return getattr(self.config, "cache_values", None)


def tokenizer_size(config: Any) -> TokenizerSize:
    """Of a tokenizer of any family. Raises ConfigError if such a tokenizer can't be built."""
    bare = without_weights(config)
    with torch.device("meta"):
        tokenizer = build_tokenizer(bare)
    size = config.image_size

    def image() -> Tensor:
        return torch.empty(1, 3, size, size)

    parts = _parts(tokenizer, count_flops(tokenizer.eval(), lambda model: model(image())))
    encoding = count_flops(tokenizer, lambda model: model.encode(image()))
    training = count_flops(tokenizer.train(), lambda model: model(image()))
    encoder = getattr(tokenizer, "encoder", None)
    return TokenizerSize(
        _with_weights_of(tokenizer.config, config),
        parts,
        _released_values(tokenizer),
        sum(encoding.values()),
        sum(training.values()),
        getattr(encoder, "grids", ()),
        getattr(encoder, "widths", ()),
    )


def generator_size(config: Any) -> GeneratorSize:
    """Of a generator of any family."""
    with torch.device("meta"):
        generator = build_generator(config).eval()
    kind = torch.int64 if isinstance(config.code, Ids) else torch.float32

    def loss(model: nn.Module) -> None:
        model.loss(torch.zeros(1, *config.code.shape, dtype=kind), torch.zeros(1, dtype=torch.int64))

    return GeneratorSize(config, _parts(generator, count_flops(generator, loss)), _released_values(generator))


def without_weights(config: Any) -> Any:
    """A section of a configuration with its encoders' weights to be loaded from nowhere."""
    return _with_weights_of(config, None)


def _with_weights_of(config: Any, other: Any) -> Any:
    """``config``, its encoders' weights to be loaded from where those of ``other`` are; of None, random."""
    changes = {}
    for name in (item.name for item in dataclasses.fields(config)):
        section, given = getattr(config, name), getattr(other, name, None)
        if isinstance(section, EncoderConfig):
            source = ("random", None) if given is None else (given.weights, given.weights_sha256)
            changes[name] = dataclasses.replace(section, weights=source[0], weights_sha256=source[1])
        elif dataclasses.is_dataclass(section):
            changes[name] = _with_weights_of(section, given)
    return dataclasses.replace(config, **changes)


def _released_values(model: nn.Module) -> int | None:
    try:
        return sum(tensor.numel() for tensor in to_released(model).values())
    except WeightsError:
        return None


def count_flops(model: nn.Module, call: Callable[[nn.Module], Any]) -> dict[str, int]:
    """FLOPs of ``call(model)`` by direct child of the model, "" for what lies outside them.

    Args:
        model: on the meta device.
        call: makes its tensors itself, as it is called where they have no content.
    """
    model = copy.deepcopy(model)  # whose tensors become fake for good
    kinds = {torch.ops.vfmtok.weighted_row_sum: _flops_of_weighted_row_sum}
    counter = FlopCounterMode(display=False, custom_mapping=kinds)
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.simplefilter("ignore")  # weights that are not there are random to the encoder
        # On the fake CPU, since autocast, which the float32 islands switch off, knows no meta device.
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        # The plain attention: the fused kernels of the CPU are not in the counter's table.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            call(model)
    counts = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}

    def inside(module: nn.Module, name: str) -> int:
        """A list of layers makes no pass of its own, nor does a module that is called by another method."""
        if name in counts:
            return counts[name]
        return sum(inside(child, f"{name}.{own}") for own, child in module.named_children())

    root = type(model).__name__
    children = {name: inside(child, f"{root}.{name}") for name, child in model.named_children()}
    return {**children, "": counts.get("Global", 0) - sum(children.values())}


def _flops_of_weighted_row_sum(table, rows, weights, *, out_shape=None, **_) -> int:
    """Shapes: rows (N,J) of a table (R,C): J multiplies and adds for each of the N x C results."""
    return 2 * math.prod(rows) * table[1]


def _parts(model: nn.Module, flops: dict[str, int]) -> list[Part]:
    """Its children, or what the family calls its parts: ``reported_parts``, a name -> children, "" for what lies
    outside them. What is in none of these, such as tables of the model's own, comes last."""
    groups = getattr(model, "reported_parts", None) or {name: (name,) for name, _ in model.named_children()}
    part_of = {child: name for name, children in groups.items() for child in children}
    parameters: dict[str, list[nn.Parameter]] = {name: [] for name in (*groups, "other")}
    for name, parameter in model.named_parameters():
        parameters[part_of.get(name.partition(".")[0], "other")].append(parameter)
    counts = dict.fromkeys(parameters, 0)
    for child, count in flops.items():
        counts[part_of.get(child, "other")] += count
    parts = [_part(name, found, counts[name]) for name, found in parameters.items()]
    return [part for part in parts if part.parameters or part.flops]


def _part(name: str, parameters: list[nn.Parameter], flops: int) -> Part:
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return Part(name, sum(parameter.numel() for parameter in parameters), trained, flops)


# --------------------------------------------------------------------------------------
# Memory of training
# --------------------------------------------------------------------------------------

# (what is kept, values per parameter, of which parameters): N are all parameters, T those that are trained.
TRAINING_STATES = (
    ("weights", 1, "N"),
    ("gradients", 1, "T"),
    ("AdamW's two moments", 2, "T"),
    ("average of the weights (EMA)", 1, "T"),
)


def training_memory(parts: list[Part], precision: str) -> dict[str, int]:
    """Bytes of every state of training, without activations: values per parameter x parameters x bytes of a value."""
    counts = {"N": sum(part.parameters for part in parts), "T": sum(part.trained for part in parts)}
    return {name: values * counts[of] * BYTES[precision] for name, values, of in TRAINING_STATES}
