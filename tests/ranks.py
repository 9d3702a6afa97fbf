"""Several gloo processes on this machine, for what ranks do together."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

TIMEOUT = timedelta(minutes=10)  # for a rank to wait for another: a test that hangs is to end


def run(program: Callable[[int], Any], folder: Path, size: int = 2) -> list[Any]:
    """What ``program(rank)``, a function of a test file that returns tensors, gives in each of ``size`` processes."""
    torch.multiprocessing.spawn(_join, (program, str(folder), size), nprocs=size)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(size)]


def _join(rank: int, program: Callable[[int], Any], folder: str, size: int) -> None:
    torch.set_num_threads(1)
    place = f"file://{folder}/meeting_point"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size, timeout=TIMEOUT)
    torch.save(program(rank), f"{folder}/rank{rank}.pt")
    dist.barrier()  # gloo aborts a process whose peer leaves while it still sends
    os._exit(0)  # and now and then one that takes the group down (vfmtok/distributed.py: leave)
