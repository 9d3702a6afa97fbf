"""Fully sharded training (FSDP2): every process keeps a slice of each weight, gradient, moment and average.

Weights are gathered layer by layer where they are needed. No process ever holds the whole model: it is built in parts
(``first_weights.py``), and each process writes and reads its own slices (``weights/sharded.py``).
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from vfmtok import distributed
from vfmtok.errors import ConfigError
from vfmtok.training.first_weights import build_in_parts
from vfmtok.weights import sharded
from vfmtok.weights.sharded import is_sharded

# What is used of FSDP2.
PARTS = ("fully_shard", "MixedPrecisionPolicy", "register_fsdp_forward_method")


def shard(model: nn.Module, layers: nn.ModuleList, methods: tuple[str, ...], precision: str) -> None:
    """Spread the tensors of ``model`` over all processes, in place; ``layers`` are gathered one at a time.

    Under "bf16" the layers are gathered in bfloat16, which autocast would make of them anyway, and their gradients
    are summed in float32; what lies outside the layers (embeddings, head) stays float32.

    Args:
        methods: names of methods besides ``forward`` that compute with the weights.

    Raises:
        ConfigError: there is one process only, or this PyTorch has no FSDP2.
    """
    if distributed.world_size() == 1:
        raise ConfigError("--parallel fsdp spreads the weights over several processes: start it by scripts/torchrun.sh")
    if precision == "fp16":
        raise ConfigError("--parallel fsdp works with --mixed-precision bf16 or none, not with fp16")
    fsdp = _fsdp()
    reduced = torch.bfloat16 if precision == "bf16" else None
    # Inputs are not cast: the rotary table stays float32.
    policy = fsdp.MixedPrecisionPolicy(reduced, torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fsdp.fully_shard(layer, mp_policy=policy)
    fsdp.fully_shard(model)
    for method in methods:
        fsdp.register_fsdp_forward_method(model, method)


@contextlib.contextmanager
def gathered_for(model: nn.Module) -> Iterator[None]:
    """Around forward passes that no backward pass follows: what they leave gathered is given up at the end.

    FSDP keeps the outermost weights gathered for a backward pass. The next forward pass would use them as they are,
    though the weights have been changed (by the average's, or by a step) meanwhile.
    """
    try:
        yield
    finally:
        if hasattr(model, "reshard"):
            model.reshard()


def _fsdp():
    """The module that holds FSDP2: public since PyTorch 2.6."""
    for name in ("torch.distributed.fsdp", "torch.distributed._composable.fsdp"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if all(hasattr(module, part) for part in PARTS):
            return module
    raise ConfigError(f"--parallel fsdp needs PyTorch 2.5 or newer, this is {torch.__version__}")


def whole(tensor: Tensor) -> Tensor:
    """The tensor as a whole. Of a sharded one every process must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def build_sharded(
    build: Callable[[], nn.Module], shard: Callable[[nn.Module], None], device: torch.device
) -> nn.Module:
    """The model that ``build()`` makes with the random numbers as they stand, with this process's slices only.

    Args:
        shard: spreads a model in place, as ``shard`` above.

    Raises ConfigError where this PyTorch is too old.
    """
    sharded.check_available()
    return build_in_parts(build, shard, keep_slice, device)


@torch.no_grad()
def keep_slice(into: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into ``into``, or of a sharded one the slice that this process keeps. Nothing is sent."""
    if is_sharded(into):
        value = _distribute(value.to(into.device), into.device_mesh, into.placements, src_data_rank=None)
    into.copy_(value)


def _distribute(*arguments, **keywords) -> Tensor:
    from torch.distributed.tensor import distribute_tensor  # new in PyTorch 2.5

    return distribute_tensor(*arguments, **keywords)
