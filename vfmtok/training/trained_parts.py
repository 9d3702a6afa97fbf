"""Training parts of a model: ``train: [pixel_decoder]`` in a recipe, the stages of a longer training.

A part that is not trained has no gradient and no moments, stays in eval mode (no dropout, fixed statistics of batch
norms), and is saved in the checkpoint with the others.
"""

import contextlib
from collections.abc import Iterator

from torch import nn

from vfmtok.config import closest_match
from vfmtok.errors import ConfigError


def choose_trained(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Only the submodules named, such as "decoder" or "decoder.layers.0", keep their gradients; without names all do.

    Raises ConfigError if there is no such part, or nothing in it to train.
    """
    names = [name for name, _ in model.named_modules() if name]
    for part in parts:
        if part not in names:
            top = [name for name, _ in model.named_children()]
            raise ConfigError(f"train: the model has no part '{part}'{closest_match(part, names)}; it has {top}")
        if not any(parameter.requires_grad for parameter in model.get_submodule(part).parameters()):
            raise ConfigError(f"train: the part '{part}' has nothing to train: it is frozen, or has no weights")
    if parts:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and _lies_in(name, parts))


def train_mode(model: nn.Module, parts: tuple[str, ...]) -> None:
    """``model.train()``, but for what is not trained: that stays in eval mode. The model itself is in training mode."""
    model.train()
    if parts:
        for name, module in model.named_modules():
            leads_to_one = not name or any(part.startswith(f"{name}.") for part in parts)
            if not leads_to_one and not _lies_in(name, parts):
                module.eval()


@contextlib.contextmanager
def evaluating(model: nn.Module, parts: tuple[str, ...]) -> Iterator[None]:
    """Eval mode within the context, and ``train_mode`` after it."""
    model.eval()
    try:
        yield
    finally:
        train_mode(model, parts)


def _lies_in(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)
