"""A step's forward and backward passes: how they are cut, and wrapped for several processes."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vfmtok import distributed


def micro_batches(size: int, *tensors: Tensor) -> Iterator[tuple[bool, tuple[Tensor, ...]]]:
    """(is the last, rows of every tensor) of a step's passes, ``size`` rows each."""
    parts = list(zip(*(tensor.split(size) for tensor in tensors), strict=True))
    return ((number == len(parts), part) for number, part in enumerate(parts, start=1))


def in_words(world: distributed.World, accumulation: int, micro_batch: int) -> str:
    """How a step's samples are shared, after their number: " = 2 processes x 4 passes x 8"; "" for a single pass."""
    parts = [f"{world.size} processes"] if world.size > 1 else []
    parts += [f"{accumulation} passes"] if accumulation > 1 else []
    return f" = {' x '.join([*parts, str(micro_batch)])}" if parts else ""


def wrap(module: nn.Module, world: distributed.World, find_unused: bool = False) -> nn.Module:
    """In DDP, where there are several processes.

    Args:
        find_unused: there may be steps in which parameters have no gradient; DDP then walks the graph in every pass.
    """
    if world.size == 1:
        return module
    return DistributedDataParallel(
        module,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=find_unused,
    )


def synced(module: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Gradients travel between processes in a step's last pass only."""
    if hasattr(module, "no_sync"):  # DDP
        return contextlib.nullcontext() if last else module.no_sync()
    sharded = next((part for part in module.modules() if hasattr(part, "set_requires_gradient_sync")), None)
    if sharded is not None:  # FSDP2, the outermost of its modules
        sharded.set_requires_gradient_sync(last)
    return contextlib.nullcontext()
