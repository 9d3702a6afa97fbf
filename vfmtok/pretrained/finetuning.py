"""Weights to begin a training with: every tensor that fits, and what does not, said."""

import contextlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vfmtok.errors import WeightsError
from vfmtok.pretrained.loading import Weights
from vfmtok.weights.name_maps import name_map, own_tensors, rename


def load_matching(
    model: nn.Module, weights: Weights, copy: Callable[[Tensor, Tensor], Any] = Tensor.copy_
) -> list[str]:
    """Copy every tensor that fits by name and shape, for fine-tuning, and list all the others.

    Args:
        copy: ``copy(into, value)`` of one tensor, for models whose tensors are sharded.

    Returns:
        lines for people: how many tensors came from the file, which start at random, which were not used.

    Raises:
        WeightsError: nothing fits.
    """
    own, published = own_tensors(model), _published_names(model)
    tensors = {name if name in own else published.get(name, name): tensor for name, tensor in weights.tensors.items()}
    fitting = [name for name, tensor in own.items() if name in tensors and tensors[name].shape == tensor.shape]
    if not fitting:
        raise WeightsError(f"no tensor of {weights.source} fits this model")
    for name in fitting:
        copy(own[name].detach(), tensors[name])
    # Parts without parameters that no file holds are not learned: a generator's statistics of latents.
    measured = tuple(f"{part}." for part in getattr(getattr(model, "released", None), "left_out", ()))
    new = [
        f"{name} (its shape is {tuple(own[name].shape)}, the file's {tuple(tensors[name].shape)})"
        if name in tensors
        else name
        for name, tensor in own.items()
        if name not in fitting and (isinstance(tensor, nn.Parameter) or not name.startswith(measured))
    ]
    unused = [name for name in tensors if name not in own]
    lines = [f"fine-tuning from {weights.source}: {len(fitting)} of {len(own)} tensors loaded"]
    return lines + [f"  starts at random: {name}" for name in new] + [f"  not used: {name}" for name in unused]


def _published_names(model: nn.Module) -> dict[str, str]:
    """The published name -> ours, for the tensors that have one."""
    names = {}
    for name in own_tensors(model):
        with contextlib.suppress(WeightsError):  # a part that was never published
            names[rename(name, name_map(model).pairs)] = name
    return names
