"""Process-group setup and the collectives we use; every function also works in a single process."""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from vfmtok.errors import SharedError, VFMTokError, is_printed_here


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start(device: str | None = None) -> World:
    """Join the processes that torchrun started; alone, without torchrun, there is nothing to join.

    Tensors on GPUs travel by NCCL, everything else by gloo.

    Args:
        device: "cpu" or "cuda"; None takes CUDA where it is there.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    on_cuda = torch.cuda.is_available() if device is None else device.startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    return World(rank, size, torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu"))


@contextlib.contextmanager
def program(name: str) -> Iterator[World]:
    """The world of a script, from its start to its end.

    An error that the user can mend becomes one line on stderr and exit code 2; where all processes raise it
    together, the first one speaks for them.
    """
    rank, code = int(os.environ.get("RANK", 0)), 0
    try:
        yield start()
        barrier()
    except VFMTokError as error:
        code = 2
        if is_printed_here(error):
            where = f" (process {rank})" if rank else ""
            print(f"{name}: error{where}: {error}", file=sys.stderr)
        if isinstance(error, SharedError):
            barrier()  # one that fails alone leaves at once, for torchrun to see
    except KeyboardInterrupt:
        code = 130
    if code or world_size() > 1:
        leave(code)


def leave(code: int) -> NoReturn:
    """End this process with an exit code.

    One of several does not go by way of the interpreter's end: threads of gloo that live on abort the process
    there, or in `destroy_process_group`, now and then ("terminate called without an active exception", torch
    2.14 under load), after all work is done.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a full disk or a closed pipe changes no exit code
                stream.flush()
        os._exit(code)
    raise SystemExit(code)


@contextlib.contextmanager
def group() -> Iterator[World]:
    """The world of a command. Where all processes come to its end they wait for each other.

    (gloo aborts a process whose peer is gone while it still works.) One that fails alone leaves at once, for
    torchrun to see.
    """
    try:
        yield start()
        barrier()
    except SharedError:
        barrier()
        raise


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Wait at the end for all processes; if one met a VFMTokError here, all raise it as a SharedError."""
    text = None
    try:
        yield
    except VFMTokError as error:
        if world_size() == 1:
            raise
        text = str(error)
    failed = [found for found in gather(text) if found is not None]
    if failed:
        raise SharedError(failed[0]) from None


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main() -> bool:
    """Is this the first process?"""
    return rank() == 0


def barrier(group: dist.ProcessGroup | None = None) -> None:
    """Wait until every process is here. It waits on the CPU, so no GPU stands still for it."""
    gather(None, group)


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The (picklable) value of every process, in the order of ranks, in every process.

    Args:
        group: all processes; None is ``patient_group``. A thread that works beside the others has a group of its own.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group or patient_group())
    return values


@functools.cache
def patient_group() -> dist.ProcessGroup:
    """All processes, by gloo. The first may download or measure for hours while the others wait for it here; the
    default group takes half an hour of silence for a hang."""
    return new_patient_group()


def new_patient_group() -> dist.ProcessGroup | None:
    """Another such group, for one thread: what two threads send by one group would be mixed up. None for one process.

    All processes must ask.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(days=1))


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor summed over all processes, in place, and returned."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """(n, ...) of every process -> (world * n, ...) in the order of ranks. All must bring equally many."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """The first process's tensor, in place in every process, and returned."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def print_main(*values: Any, file=None) -> None:
    """Print in the first process only, and at once."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(*values, file=file or sys.stdout, flush=True)
