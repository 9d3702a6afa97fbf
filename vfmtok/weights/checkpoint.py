"""Checkpoints that cannot be half there: written beside, synced, renamed; read only if every checksum is right.

A checkpoint is a folder ``step_0001000``:

- ``<part>.safetensors`` for every part (model, ema, discriminator, moments of the optimizers, ...),
- ``config.yaml``: the recipe the run was made by,
- ``state.json``: the numbers of the run, the SHA-256 of every other file, and its own.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vfmtok.errors import WeightsError
from vfmtok.weights.reading import read, sha256

NAME = re.compile(r"step_(\d{7,})(\.old)?")
LEFTOVER = re.compile(r"step_(\d{7,})\.(tmp|old)")  # of a process that was killed while it saved
log = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """What is saved of a run, and comes back."""

    step: int  # finished steps
    parts: dict[str, dict[str, Tensor]]  # part -> name -> tensor
    numbers: dict[str, Any]  # JSON: position, metrics, versions, the recipe
    config: str = ""  # the recipe as YAML
    path: Path | None = field(default=None, compare=False)


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

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and remove those that are too many.

        Raises:
            OSError: it could not be written (disk full, ...); the others are untouched, nothing half is left.
        """
        final = self.folder / f"step_{checkpoint.step:07d}"
        temporary, old = _beside(final, ".tmp"), _beside(final, ".old")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            digests = {}
            for name, tensors in checkpoint.parts.items():
                file = temporary / f"{name}.safetensors"
                digests[file.name] = _write_tensors(tensors, file)
            (temporary / "config.yaml").write_bytes(checkpoint.config.encode())
            digests["config.yaml"] = hashlib.sha256(checkpoint.config.encode()).hexdigest()
            state = {"step": checkpoint.step, "numbers": checkpoint.numbers, "files": digests}
            (temporary / "state.json").write_text(json.dumps(_sealed(state), indent=1), encoding="utf-8")
            for file in temporary.iterdir():
                _sync(file)
            _sync(temporary)
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
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._remove_old(checkpoint.step)
        return final

    def load_newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        Damaged ones are logged and passed over.

        Raises:
            WeightsError: there are checkpoints and none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return load(self.path(step))
            except WeightsError as error:
                log.warning("%s: passed over, falling back to the checkpoint before", error)
        if steps:
            raise WeightsError(
                f"{self.folder}: none of its {len(steps)} checkpoints is whole; remove them to begin anew"
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


def read_state(path: Path) -> dict[str, Any]:
    """What state.json of a checkpoint folder says: step, numbers, files (name -> SHA-256). Raises WeightsError."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: no readable state.json ({type(error).__name__})") from None
    if not isinstance(state, dict) or state != _sealed({key: state[key] for key in state if key != "sha256"}):
        raise WeightsError(f"{path}/state.json was cut or changed")
    return state


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        WeightsError: it is not there, or a file is missing, cut or changed.
    """
    state = read_state(path)
    for name, digest in state["files"].items():
        file = path / name
        if not file.is_file() or sha256(file) != digest:
            raise WeightsError(f"{file} is missing, cut or changed")
    parts = {
        name.removesuffix(".safetensors"): safetensors.torch.load_file(path / name)
        for name in state["files"]
        if name.endswith(".safetensors")
    }
    config = (path / "config.yaml").read_text(encoding="utf-8")
    return Checkpoint(state["step"], parts, state["numbers"], config, path)


def part_file(path: Path, part: str) -> Path:
    """The file of a part in a checkpoint folder, or a saved model's."""
    return path / f"{part}.safetensors"


def has_part(path: Path, part: str) -> bool:
    """Whether a checkpoint folder, or a saved model's, holds tensors of this name ("model", "ema", ...)."""
    return part_file(path, part).is_file()


def read_part(path: Path, part: str) -> dict[str, Tensor]:
    """One part, without the others; checked where there is a state.json, which weights that were moved may lack.

    Raises WeightsError.
    """
    file = path / f"{part}.safetensors"
    if (path / "state.json").exists() and read_state(path)["files"].get(file.name) != sha256(file):
        raise WeightsError(f"{file} was cut or changed: take the checkpoint before it")
    return read(file)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch's generators (CPU and GPU) for one step: dropout, random crops of the discriminator, ...

    A run that is continued, at whatever step and after whatever end, draws the numbers it would have drawn.
    The three are mixed by SHA-256: close seeds must not give alike sequences.
    """
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _write_tensors(tensors: dict[str, Tensor], file: Path) -> str:
    """Returns the SHA-256 of the file. Raises OSError."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(plain, file)
        return sha256(file)
    except (safetensors.SafetensorError, WeightsError) as error:  # two dresses of what the operating system said
        raise OSError(str(error)) from None


def _sealed(state: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(state, sort_keys=True)
    return {**state, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _sync(path: Path) -> None:
    """To the disk; a folder too, or its entries could be lost with the power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
