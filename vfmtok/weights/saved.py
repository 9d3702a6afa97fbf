"""Checkpoints as they lie on the disk: opened by what state.json says, checked, and read part by part.

A part is a file of tensors, or a folder of files that several processes wrote (``sharded.py``); who reads it need not
know which. ``checkpoint.py`` says what a checkpoint holds and writes it.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from vfmtok.errors import WeightsError
from vfmtok.weights import sharded
from vfmtok.weights.reading import read, sha256


@dataclass
class Checkpoint:
    """What is saved of a run, and comes back."""

    step: int  # finished steps
    parts: dict[str, dict[str, Tensor]]  # part -> name -> tensor
    numbers: dict[str, Any]  # JSON: position, metrics, versions, the recipe
    config: str = ""  # the recipe as YAML
    path: Path | None = field(default=None, compare=False)

    @property
    def is_sharded(self) -> bool:
        """Whether this process has slices of the tensors only."""
        return any(sharded.is_sharded(tensor) for tensors in self.parts.values() for tensor in tensors.values())


class Part:
    """Tensors of one name in a checkpoint, which are read when they are asked for.

    Args:
        path: the file, or the folder of a sharded part.
    """

    def __init__(self, path: Path):
        self.path = path

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """name -> shape, without reading the tensors."""
        if self.path.is_dir():
            return sharded.shapes(self.path)
        with safetensors.safe_open(self.path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict

    def read(self) -> dict[str, Tensor]:
        """All of it, whole."""
        return sharded.read(self.path) if self.path.is_dir() else read(self.path)

    @torch.no_grad()
    def read_into(self, tensors: dict[str, Tensor]) -> None:
        """Fill tensors of these names and shapes, or the slices of them that this process has.

        Of sharded tensors every process must call it, and reads its slices only. One tensor at a time is in memory.
        """
        if self.path.is_dir() or any(sharded.is_sharded(tensor) for tensor in tensors.values()):
            return sharded.read_into(self.path, tensors)
        with safetensors.safe_open(self.path, "pt") as file:
            for name, tensor in tensors.items():
                tensor.copy_(file.get_tensor(name))


@dataclass
class SavedCheckpoint:
    """A checkpoint on the disk. ``files``: name -> SHA-256; ``seal``: of state.json; the rest as ``Checkpoint``."""

    step: int
    parts: dict[str, Part]
    numbers: dict[str, Any]
    path: Path
    files: dict[str, str]
    seal: str

    def check(self, share: int = 0, shares: int = 1) -> None:
        """Hash every file, or one of several equal shares of them. Raises WeightsError for one that was changed."""
        for name, digest in sorted(self.files.items())[share::shares]:
            file = self.path / name
            if not file.is_file() or sha256(file) != digest:
                raise WeightsError(f"{file} is missing, cut or changed")

    def read(self) -> Checkpoint:
        """All of it, whole."""
        config = (self.path / "config.yaml").read_text(encoding="utf-8")
        return Checkpoint(
            self.step, {name: part.read() for name, part in self.parts.items()}, self.numbers, config, self.path
        )


def open_checkpoint(path: Path) -> SavedCheckpoint:
    """A checkpoint folder, its state.json checked, its other files not yet. Raises WeightsError."""
    state = read_state(path)
    tops = {name: Path(name).parts[0] for name in state["files"] if name.endswith(".safetensors")}
    parts = {top.removesuffix(".safetensors"): Part(path / top) for top in tops.values()}
    return SavedCheckpoint(state["step"], parts, state["numbers"], path, state["files"], state["sha256"])


def read_state(path: Path) -> dict[str, Any]:
    """What state.json of a checkpoint folder says: step, numbers, files (name -> SHA-256). Raises WeightsError."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: no readable state.json ({type(error).__name__})") from None
    if not isinstance(state, dict) or state != sealed({key: state[key] for key in state if key != "sha256"}):
        raise WeightsError(f"{path}/state.json was cut or changed")
    return state


def sealed(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` and the SHA-256 of its text."""
    text = json.dumps(state, sort_keys=True)
    return {**state, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def part_file(path: Path, part: str) -> Path:
    """The one file of a part in a checkpoint folder, or a saved model's. Raises WeightsError for a sharded one."""
    if (path / part).is_dir():
        raise WeightsError(f"{path / part} is sharded, it has no one file: `vfmtok export` makes one")
    return path / f"{part}.safetensors"


def has_part(path: Path, part: str) -> bool:
    """Whether a checkpoint folder, or a saved model's, holds tensors of this name ("model", "ema", ...)."""
    return (path / f"{part}.safetensors").is_file() or (path / part).is_dir()


def read_part(path: Path, part: str) -> dict[str, Tensor]:
    """One part, whole, without the others; checked where there is a state.json, which weights that were moved may lack.

    Raises WeightsError.
    """
    if not (path / "state.json").exists():
        return read(part_file(path, part))
    saved = open_checkpoint(path)
    if part not in saved.parts:
        raise WeightsError(f"{path}: its state.json knows no part {part}")
    top = saved.parts[part].path.name
    saved.files = {name: digest for name, digest in saved.files.items() if Path(name).parts[0] == top}
    saved.check()
    return saved.parts[part].read()
