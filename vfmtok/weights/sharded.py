"""One part of a sharded checkpoint: a folder of safetensors files, of which every process writes and reads its own.

The work is done by torch.distributed.checkpoint, in its form that keeps tensors in safetensors files (its other form
keeps their places in a pickle, and nothing that is read may run code). A file says for each tensor in it which slice it
is, so that any number of processes reads what any other number wrote, and one process reads it all.
"""

import contextlib
import inspect
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.errors import ConfigError, WeightsError

FILE_BYTES = 1 << 28  # about so much is in one file, and of a GPU's tensors in memory while it is written


def check_available() -> None:
    """Raise ConfigError if this PyTorch cannot write sharded checkpoints."""
    writer = getattr(_dcp(), "HuggingFaceStorageWriter", None)
    if writer is None or "save_distributed" not in inspect.signature(writer).parameters:
        raise ConfigError(f"--parallel fsdp needs PyTorch 2.9 or newer, this is {torch.__version__}")


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a slice of it only (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def write(folder: Path, tensors: Mapping[str, Tensor], group: Any = None) -> None:
    """Write this process's slices of a part, synced to the disk. All processes must call it.

    Args:
        group: by which they agree on it; see ``distributed.gather``.

    Raises OSError, in all of them, if one can't write.
    """
    from vfmtok.weights.shard_writer import ShardWriter

    writer = ShardWriter(folder, _files_of(tensors))
    with _as_os_error():
        _dcp().save(dict(tensors), storage_writer=writer, process_group=group or distributed.patient_group())


def own_files(folder: Path, rank: int) -> list[Path]:
    """What ``write`` wrote in the process of this rank."""
    return sorted(folder.glob(f"shard-{rank + 1:05d}-*.safetensors"))


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """name -> shape of the whole tensor. ``path`` is a part's folder, or the one file of an unsharded part."""
    with _reader(path) as reader:
        found = reader.read_metadata().state_dict_metadata
        return {name: tuple(facts.size) for name, facts in found.items()}


def read(path: Path) -> dict[str, Tensor]:
    """The whole tensors of a part's folder, in this process alone."""
    with _reader(path) as reader:
        found = reader.read_metadata().state_dict_metadata
        tensors: dict[str, Any] = {
            name: torch.empty(facts.size, dtype=facts.properties.dtype) for name, facts in found.items()
        }
        with _as_weights_error(path):
            _dcp().load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def read_into(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, or the slices that this process has of them, from a part's folder or file.

    Where they are sharded, all processes must call it. Names and shapes must be those of the part.
    """
    together = any(is_sharded(tensor) for tensor in tensors.values())
    state = {name: tensor.detach() for name, tensor in tensors.items()}
    with _reader(path) as reader, _as_weights_error(path):
        group = distributed.patient_group() if together else None
        _dcp().load(state, storage_reader=reader, process_group=group, no_dist=not together)


def _dcp() -> Any:
    import torch.distributed.checkpoint  # takes a second, which only sharded runs shall wait

    return torch.distributed.checkpoint


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """name -> number of the file, from 1, that each process writes its slice to."""
    numbers, filled, number = {}, 0, 1
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() // distributed.world_size()  # numbers must be the same in all
        if filled and filled + size > FILE_BYTES:
            filled, number = 0, number + 1
        numbers[name], filled = number, filled + size
    return numbers


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[Any]:
    """PyTorch's reader takes all files of a folder: one that lies among others gets a folder with a link to it."""
    with contextlib.ExitStack() as stack:
        if path.is_file():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (folder / path.name).symlink_to(path.resolve())
            path = folder
        yield _dcp().HuggingFaceStorageReader(str(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Not for what a thread may do beside others: all of them share the filters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of being alone, and of internal interfaces that change
        yield


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """What a process failed at, raised by PyTorch in all of them and with all their tracebacks, in one line."""
    try:
        yield
    except _dcp().CheckpointException as error:
        raise OSError(_first_failure(error)) from None


@contextlib.contextmanager
def _as_weights_error(path: Path) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except _dcp().CheckpointException as error:
        raise WeightsError(f"cannot read {path}: {_first_failure(error)}") from None


def _first_failure(error: BaseException) -> str:
    rank, (cause, _) = next(iter(sorted(error.failures.items())))
    text = getattr(cause, "strerror", None) or str(cause).strip().partition("\n")[0] or type(cause).__name__
    return f"{text} (process {rank})"
