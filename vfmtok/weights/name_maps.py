"""Which tensors a model owns, under our names and under published ones: the strict ways in and out.

Our names are those of the state dict. For published files a map lies beside each model.

A ``NameMap`` says everything: each pair is (our name, published name) of a module or tensor, ``*`` standing for one
number. Loading is strict both ways: every tensor of the model must come from the file, every tensor of the file must go
into the model, with its exact shape. A model carries its map as the attribute ``released``.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vfmtok.errors import WeightsError

Names = tuple[tuple[str, str], ...]


def below(ours: str, theirs: str, names: Names) -> Names:
    """The names of a part's tensors in a model where the part is called ``ours``, in the file ``theirs``."""
    return tuple((f"{ours}.{own}", f"{theirs}.{published}") for own, published in names)


@dataclass(frozen=True)
class FixedTable:
    """A published tensor that follows from its shape, such as sine-cosine positions.

    Attributes:
        shape: that it has in the model.
        build: shape -> the table.
    """

    shape: tuple[int, ...]
    build: Callable[[tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class View:
    """A tensor of ours of which the file has parts, or the same in another shape.

    Attributes:
        ours: its name, ``*`` standing for one number.
        theirs: the published names of what ``cut`` gives.
        cut: our tensor -> views of its memory.
    """

    ours: str
    theirs: tuple[str, ...]
    cut: Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class NameMap:
    """How a published file names the tensors of a model.

    Attributes:
        pairs: (our name, published name); the first pair that fits a tensor counts.
        buffers: shapes of published tensors that carry no model: checked and dropped on the way in, zeros on the way
            out. A model with a dict ``carried`` keeps them there, and gives them back.
        left_out: parts of the model that the file does not hold, such as a frozen encoder.
        computed: tensors that some published files hold and others do not, which the model computes itself: dropped on
            the way in, not written.
        fixed: by published name. Compared (within 1e-5 of what belongs to the file's own shape) and dropped on the way
            in, where the file has them; written on the way out. What the model keeps of them it computed itself.
        views: tensors that the file has in several parts or in another shape.
    """

    pairs: Names
    buffers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    fixed: Mapping[str, FixedTable] = field(default_factory=dict)
    views: tuple[View, ...] = ()


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What is saved of a model, by our names: all but its ``frozen_parts``. Tensors are shared, parameters as such."""
    frozen = tuple(f"{part}." for part in getattr(model, "frozen_parts", ()))
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if not name.startswith(frozen)}


@torch.no_grad()
def copy_strictly(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy weights under our names, every one of them. Raises WeightsError if names or shapes differ."""
    own = own_tensors(model)
    check_tensors(tensors, {name: tuple(t.shape) for name, t in own.items()}, f"the configuration ({source})")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def load_released(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Copy a published checkpoint (its names) into ``model``, strictly, and return ``model``.

    Where several variants of a model were published, its method ``fit_released(names)`` makes it the one that the file
    holds first.

    Raises:
        WeightsError: a tensor is missing, extra or mis-shaped, or the model has a part that was never published (an
            ablation's). The first names are listed; nothing is loaded.
    """
    if hasattr(model, "fit_released"):
        model.fit_released(state_dict.keys())
    names, published = name_map(model), published_tensors(model)
    expected = {name: tensor.shape for name, tensor in published.items()} | dict(names.buffers)
    dropped = {*names.computed, *names.fixed}
    expected = {name: shape for name, shape in expected.items() if name not in names.fixed}
    check_tensors({name: t for name, t in state_dict.items() if name not in dropped}, expected, type(model).__name__)
    _check_fixed(names, state_dict, type(model).__name__)
    with torch.no_grad():
        for name, tensor in published.items():
            if name not in names.fixed:
                tensor.copy_(state_dict[name])
    if hasattr(model, "carried"):
        model.carried = {name: state_dict[name].clone() for name in names.buffers}
    return model


def _check_fixed(names: NameMap, state_dict: Mapping[str, Tensor], model: str) -> None:
    """Raise WeightsError unless the fixed tables that are there are the ones of their shapes."""
    for name, table in names.fixed.items():
        if name not in state_dict:
            continue
        found = state_dict[name]
        fits = isinstance(found, Tensor) and found.ndim == len(table.shape)
        computed = table.build(tuple(found.shape)) if fits else None
        if not fits or computed.shape != found.shape or not torch.allclose(found.float().cpu(), computed, 0, 1e-5):
            raise WeightsError(f"these weights are not those of {model}: the fixed table {name} holds other numbers")


def to_released(model: nn.Module) -> dict[str, Tensor]:
    """The published names and tensors of ``model``: the exact inverse of ``load_released``.

    Like ``state_dict``, the tensors share the model's memory. Parts that the release leaves out (a frozen encoder) are
    left out here.

    Raises:
        WeightsError: a part of the model has no published name, or is one that the release leaves out and was trained.
    """
    _check_left_out(model)
    names, carried = name_map(model), getattr(model, "carried", {})
    buffers = {name: carried.get(name, torch.zeros(shape)) for name, shape in names.buffers.items()}
    return published_tensors(model) | buffers | {name: table.build(table.shape) for name, table in names.fixed.items()}


def _check_left_out(model: nn.Module) -> None:
    """Raise WeightsError where a part that the file does not hold is not frozen: its weights would be lost."""
    for part in name_map(model).left_out:
        known_elsewhere = part in getattr(model, "frozen_parts", (part,))
        if not known_elsewhere and any(name.startswith(f"{part}.") for name, _ in model.named_parameters()):
            raise WeightsError(
                f"the released format does not hold the {part} of a {type(model).__name__}, and this one is trained "
                f"({part}.frozen false): save_pretrained keeps it"
            )


def name_map(model: nn.Module) -> NameMap:
    """Raises WeightsError for a model of which nothing was published."""
    names = getattr(model, "released", None)
    if not isinstance(names, NameMap):
        raise WeightsError(f"nothing like a {type(model).__name__} was published: it has no released names")
    return names


def published_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors under their published names, sharing its memory. Raises WeightsError."""
    names = name_map(model)
    left_out = tuple(f"{part}." for part in names.left_out)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(left_out)}
    published = {}
    for name, tensor in tensors.items():
        view = next((view for view in names.views if _follow(name, view.ours, "") is not None), None)
        if view is None:
            published[rename(name, names.pairs)] = tensor
        else:
            theirs = (_follow(name, view.ours, part) for part in view.theirs)
            published |= dict(zip(theirs, view.cut(tensor), strict=True))
    return published


def rename(name: str, names: Names) -> str:
    """The second name of the pair that ``name`` begins with the first of. Raises WeightsError if there is none."""
    for ours, theirs in names:
        if (found := _follow(name, ours, theirs)) is not None:
            return found
    raise WeightsError(f"'{name}' has no name in the other format: one of the two models has a part the other lacks")


def _follow(name: str, ours: str, theirs: str) -> str | None:
    """``name`` with its beginning ``ours`` replaced by ``theirs``, numbers kept; None if it begins otherwise."""
    match = re.fullmatch(re.escape(ours).replace(r"\*", r"(\d+)") + r"(|\..+)", name)
    if match is None:
        return None
    *numbers, rest = match.groups()
    for number in numbers:
        theirs = theirs.replace("*", number, 1)
    return theirs + rest


def check_tensors(state_dict: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Raise WeightsError unless ``state_dict`` has exactly the names and shapes of ``expected``, and holds tensors."""
    found = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state_dict.items()}
    others = {name for name, tensor in state_dict.items() if not isinstance(tensor, Tensor)}
    check_shapes(found, expected, model, others)


def check_shapes(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    model: str,
    others: Collection[str] = (),
) -> None:
    """The same, of shapes; ``others`` are names of what is no tensor."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshaped = [
        f"{name} {found[name]} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and (found[name] != tuple(shape) or name in others)
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if names
    ]
    if problems:
        raise WeightsError(f"these weights are not those of {model}: {'; '.join(problems)}")
