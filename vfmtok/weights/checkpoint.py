"""Checkpoints that cannot be half there: written beside, synced, renamed; read only if every checksum is right.

A checkpoint is a folder ``step_0001000``:

- ``<part>.safetensors`` for every part (model, ema, discriminator, moments of the optimizers, ...); of a sharded run a
  folder ``<part>`` instead, with files of every process (see ``sharded.py``),
- ``config.yaml``: the recipe the run was made by,
- ``state.json``: the numbers of the run, the SHA-256 of every other file, and its own.

Several processes share the work of reading: each checks its share of the files, and all go by what all found.

Random states are not among them: a run draws its random numbers from (seed, step, rank), see ``seed_step``.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from vfmtok import distributed
from vfmtok.errors import WeightsError
from vfmtok.weights import sharded
from vfmtok.weights.reading import sha256
from vfmtok.weights.saved import Checkpoint, SavedCheckpoint, open_checkpoint, sealed

NAME = re.compile(r"step_(\d{7,})(\.old)?")
LEFTOVER = re.compile(r"step_(\d{7,})\.(tmp|old)")  # of a process that was killed while it saved
log = logging.getLogger(__name__)


class CheckpointFolder:
    """The checkpoints of a run.

    Args:
        folder: where they are; made when the first is saved.
        keep: how many of the newest stay. The best one by ``numbers["metrics"][best]`` stays besides.
        best: the metric that says which one is best (more is better), or None.
    """

    def __init__(self, folder: Path, keep: int = 2, best: str | None = None):
        self.folder, self.keep, self.best = folder, keep, best

    def steps(self) -> list[int]:
        """Of the complete-looking checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted({int(match[1]) for entry in os.listdir(self.folder) if (match := NAME.fullmatch(entry))})

    def path(self, step: int) -> Path:
        """Of a checkpoint. One that had made way for another of its step, which then did not come, is still .old."""
        path = self.folder / f"step_{step:07d}"
        old = _beside(path, ".old")
        return old if old.is_dir() and not path.exists() else path

    def save(self, checkpoint: Checkpoint, group: ProcessGroup | None = None) -> Path:
        """Write a checkpoint and remove those that are too many.

        One process writes it. Where its tensors are sharded, all must call this, and each writes its slices.

        Args:
            group: by which processes that write slices agree; None is ``distributed.patient_group``. A thread beside
                the one that trains brings its own.

        Raises:
            OSError: it could not be written (disk full, ...), in all processes that write; the others are untouched,
                nothing half is left.
        """
        final = self.folder / f"step_{checkpoint.step:07d}"
        temporary = _beside(final, ".tmp")
        spread = checkpoint.is_sharded
        main = not spread or distributed.is_main()
        agreed = partial(_all_or_none, group) if spread else contextlib.nullcontext
        write = partial(_write_sharded, group=group) if spread else _write_files
        try:
            with agreed():
                if main:
                    shutil.rmtree(temporary, ignore_errors=True)
                    temporary.mkdir(parents=True)
            digests = write(checkpoint.parts, temporary)
            with agreed():
                if main:
                    self._complete(checkpoint, temporary, final, digests)
        except BaseException as error:
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
            if spread and isinstance(error, OSError):  # all raise it; none continues before it is removed
                distributed.barrier(group)
            raise
        if main:
            self._remove_old(checkpoint.step)
        return final

    def _complete(self, checkpoint: Checkpoint, temporary: Path, final: Path, digests: dict[str, str]) -> None:
        """Write what is beside the tensors, and let the folder appear under its name."""
        old = _beside(final, ".old")
        try:
            (temporary / "config.yaml").write_bytes(checkpoint.config.encode())
            digests = {**digests, "config.yaml": hashlib.sha256(checkpoint.config.encode()).hexdigest()}
            state = {"step": checkpoint.step, "numbers": checkpoint.numbers, "files": digests}
            (temporary / "state.json").write_text(json.dumps(sealed(state), indent=1), encoding="utf-8")
            for path in [*temporary.rglob("*"), temporary]:
                _sync(path)
            if final.exists():  # the same step once more, after a fall-back or with the validation that was left out
                shutil.rmtree(old, ignore_errors=True)
                os.rename(final, old)
            os.rename(temporary, final)
            _sync(self.folder)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            if old.is_dir() and not final.exists():
                with contextlib.suppress(OSError):  # it is found under this name too
                    os.rename(old, final)
            raise

    def open_newest(self) -> SavedCheckpoint | None:
        """The newest checkpoint that is whole, or None where there is none at all. All processes must call it.

        Damaged ones are logged and passed over, by all processes together.

        Raises:
            WeightsError: there are checkpoints and none is whole.
        """
        steps = self.steps()
        alike = len(set(map(tuple, distributed.gather(steps)))) == 1  # else the caller finds out where each would begin
        for step in reversed(steps):
            try:
                return open_together(self.path(step)) if alike else open_checked(self.path(step))
            except WeightsError as error:
                log.warning("%s: passed over, falling back to the checkpoint before", error)
        if steps:
            raise WeightsError(
                f"{self.folder}: none of its {len(steps)} checkpoints is whole; remove them to start from the beginning"
            )
        return None

    def newest(self) -> Path | None:
        """The folder of the newest complete-looking checkpoint, or None."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest metric, the first of several.

        Only those whose weights were measured have one: between two validations they carry the metrics of the former.
        """
        scores = {step: score for step in self.steps() if (score := self._score(step)) is not None}
        return max(scores, key=lambda step: (scores[step], -step)) if scores else None

    def _score(self, step: int) -> float | None:
        if self.best is None:
            return None
        try:
            metrics = json.loads((self.path(step) / "state.json").read_text())["numbers"]["metrics"]
            measured = metrics["step"] == step and math.isfinite(metrics[self.best])
            return metrics[self.best] if measured else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remove_old(self, newest: int) -> None:
        """Those beyond ``newest``, just saved, are damaged ones that were passed over: they may not crowd it out."""
        steps = [step for step in self.steps() if step <= newest]
        kept = {*steps[-self.keep :], self.best_step()}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)
        for entry in os.listdir(self.folder):
            if (match := LEFTOVER.fullmatch(entry)) and self.path(int(match[1])).name != entry:
                shutil.rmtree(self.folder / entry, ignore_errors=True)


def newest_checkpoint(run: Path) -> Path:
    """The folder of the newest checkpoint in a run's folder. Raises WeightsError if there is none."""
    found = CheckpointFolder(run / "checkpoints").newest()
    if found is None:
        raise WeightsError(f"{run} has no finished checkpoint yet")
    return found


def open_checked(path: Path) -> SavedCheckpoint:
    """Open a checkpoint folder and hash all of it. Raises WeightsError: a file is missing, cut or changed."""
    saved = open_checkpoint(path)
    saved.check()
    return saved


def open_together(path: Path) -> SavedCheckpoint:
    """The same by all processes, each of which hashes its share. Raises WeightsError in all of them."""
    saved, problem = None, None
    try:
        saved = open_checkpoint(path)
    except WeightsError as error:
        problem = str(error)
    found = distributed.gather((problem, saved and saved.seal))
    problem = next((text for text, _ in found if text is not None), None)
    if problem is None and len(set(found)) > 1:
        problem = f"{path} is not the same checkpoint for all processes"
    if problem is None and saved is not None:
        try:
            saved.check(distributed.rank(), distributed.world_size())
        except WeightsError as error:
            problem = str(error)
        problem = next((text for text in distributed.gather(problem) if text is not None), None)
    if problem is not None or saved is None:
        raise WeightsError(problem)
    return saved


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder. Raises WeightsError: it is not there, or a file is missing, cut or changed."""
    return open_checked(path).read()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch's generators (CPU and GPU) for one step: dropout, random crops of the discriminator, ...

    A run that is continued, at whatever step and after whatever end, draws the numbers it would have drawn.
    The three are mixed by SHA-256: close seeds must not give alike sequences.
    """
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _write_files(parts: dict[str, dict[str, Tensor]], folder: Path) -> dict[str, str]:
    """A file of every part. Returns their SHA-256. Raises OSError."""
    return {f"{name}.safetensors": _write_tensors(t, folder / f"{name}.safetensors") for name, t in parts.items()}


def _write_sharded(parts: dict[str, dict[str, Tensor]], folder: Path, group: ProcessGroup | None) -> dict[str, str]:
    """A folder of every part, by all processes. Returns the SHA-256 of all files, each by whom wrote it."""
    digests: dict[str, str] = {}
    for name, tensors in parts.items():
        sharded.write(folder / name, tensors, group)
    with _all_or_none(group):
        for name in parts:
            for file in sharded.own_files(folder / name, distributed.rank()):
                digests[f"{name}/{file.name}"] = sha256(file)
    return {name: digest for found in distributed.gather(digests, group) for name, digest in found.items()}


@contextlib.contextmanager
def _all_or_none(group: ProcessGroup | None) -> Iterator[None]:
    """Wait for all processes at the end; an OSError or WeightsError of one becomes an OSError of all."""
    text = None
    try:
        yield
    except (OSError, WeightsError) as error:
        text = getattr(error, "strerror", None) or str(error)
    failed = [found for found in distributed.gather(text, group) if found is not None]
    if failed:
        raise OSError(failed[0])


def _write_tensors(tensors: dict[str, Tensor], file: Path) -> str:
    """Returns the SHA-256 of the file. Raises OSError."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(plain, file)
        return sha256(file)
    except (safetensors.SafetensorError, WeightsError) as error:  # both wrap the same OSError
        raise OSError(str(error)) from None


def _sync(path: Path) -> None:
    """To the disk; a folder too, or its entries could be lost with the power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
