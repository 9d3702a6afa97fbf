"""One object that is the whole run at a step: what a checkpoint keeps, and what it brings back."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfmtok import __version__, distributed
from vfmtok.config import config_from_dict, config_to_dict, dump_config
from vfmtok.errors import ConfigError, DataError, WeightsError
from vfmtok.training.ema import EMA
from vfmtok.training.optimizer import Stepper, load_moments, moments
from vfmtok.training.recipe import changed_keys
from vfmtok.weights.checkpoint import Checkpoint
from vfmtok.weights.name_maps import check_shapes, own_tensors
from vfmtok.weights.saved import SavedCheckpoint


@dataclass
class RunState:
    """
    Attributes:
        recipe: the recipe, resolved.
        identity: the section of the recipe that can't change on the way: "tokenizer" or "generator".
        modules: by name; "<name>" has its optimizer in ``steppers`` under the same name, if it learns by one.
        tensors: further parts with ``state_dict()`` of tensors and ``load_state_dict(state, is_main)``.
        numbers: further parts with ``state_dict()`` of plain values and ``load_state_dict(state)``.
        step, samples_seen: finished, over all processes.
        metrics: of the last validation.
        data: "samples" and "fingerprint" of the training data; empty: they are not compared on resuming.
        commit: of the code that runs.
    """

    recipe: Any
    identity: str
    modules: dict[str, nn.Module]
    steppers: dict[str, Stepper]
    ema: EMA | None
    tensors: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    samples_seen: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    commit: str | None = field(default_factory=lambda: _commit())  # at the start: the checkout may move on meanwhile

    def checkpoint(self) -> Checkpoint:
        """All that is to be saved; tensors are shared, not copied."""
        parts: dict[str, dict[str, Tensor]] = {name: own_tensors(module) for name, module in self.modules.items()}
        for name, stepper in self.steppers.items():
            parts[f"{name}_optimizer"] = moments(stepper.optimizer, _parameter_names(self.modules[name]))
        if self.ema is not None:
            parts["ema"] = self.ema.average
        for name, part in self.tensors.items():
            parts[name] = part.state_dict()
        numbers = {
            "samples_seen": self.samples_seen,
            "metrics": self.metrics,
            "data": self.data,
            "world_size": distributed.world_size(),
            "versions": {"vfmtok": __version__, "commit": self.commit, "torch": torch.__version__},
            "recipe": config_to_dict(self.recipe),
            "parts": {name: part.state_dict() for name, part in (self.numbers | self.steppers).items()},
        }
        return Checkpoint(self.step, parts, numbers, dump_config(self.recipe))

    def restore(self, checkpoint: SavedCheckpoint, is_main: bool) -> list[str]:
        """Become what was saved. Of a sharded model every process must call it.

        Returns:
            lines for people: what differs from the run that was saved.

        Raises:
            WeightsError: the checkpoint is of another model; nothing is changed then.
            DataError: it was trained on other data, and ``run.new_data`` is not set; nothing is changed.
        """
        lines = self._check(checkpoint) + self._check_data(checkpoint)
        for name, module in self.modules.items():
            if name in checkpoint.parts:
                checkpoint.parts[name].read_into(own_tensors(module))
        for name, stepper in self.steppers.items():
            if f"{name}_optimizer" in checkpoint.parts:
                names = _parameter_names(self.modules[name])
                left = load_moments(stepper.optimizer, names, checkpoint.parts[f"{name}_optimizer"])
                if left:
                    lines.append(f"{left} moments of the checkpoint are of another optimizer of the {name}: left out")
        if self.ema is not None:
            first = next(iter(self.modules))  # whose weights an average begins with
            checkpoint.parts["ema" if "ema" in checkpoint.parts else first].read_into(self.ema.average)
        for name, part in self.tensors.items():
            if name in checkpoint.parts:
                part.load_state_dict(checkpoint.parts[name].read(), is_main)
        saved = checkpoint.numbers["parts"]
        for name, part in (self.numbers | self.steppers).items():
            if name in saved:
                part.load_state_dict(saved[name])
        self.step, self.samples_seen = checkpoint.step, checkpoint.numbers["samples_seen"]
        self.metrics = checkpoint.numbers["metrics"]
        return lines

    def _check(self, checkpoint: SavedCheckpoint) -> list[str]:
        try:  # fields newer than the checkpoint are what they are pinned at, else at their defaults
            saved = config_from_dict(checkpoint.numbers["recipe"], type(self.recipe), saved=True)
        except ConfigError as error:
            raise WeightsError(f"{checkpoint.path} is of another version or kind of model: {error}") from None
        changes = changed_keys(config_to_dict(saved), config_to_dict(self.recipe))
        # Where the encoder's file lies may change; its hash may not.
        changes.pop(f"{self.identity}.encoder.weights", None)
        fixed = [key for key in changes if key.startswith(f"{self.identity}.") or key == "train"]
        if fixed:
            listed = ", ".join(f"{key} is {changes[key][1]}, was {changes[key][0]}" for key in fixed[:3])
            raise WeightsError(
                f"{checkpoint.path} is of another model: {listed}. Give the same settings, or another --results-dir; "
                "with run.start_from weights that fit are taken there"
            )
        for name, module in self.modules.items():
            if name in checkpoint.parts:
                own = {key: tuple(tensor.shape) for key, tensor in own_tensors(module).items()}
                check_shapes(checkpoint.parts[name].shapes(), own, f"this run's {name}")
        lines = [f"changed since the checkpoint: {key} {old} -> {new}" for key, (old, new) in changes.items()]
        lines += [
            f"not in the checkpoint, begins with its first weights: {name}"
            for name in self.modules
            if name not in checkpoint.parts
        ]
        return lines

    def _check_data(self, checkpoint: SavedCheckpoint) -> list[str]:
        """The training data are those of the checkpoint, whatever their path. Version 0.1 did not save which."""
        before, now = checkpoint.numbers.get("data") or {}, self.data
        if not before or not now or before["fingerprint"] == now["fingerprint"]:
            return []
        was, are = (f"{data['samples']} samples, fingerprint {data['fingerprint'][:12]}" for data in (before, now))
        if not self.recipe.run.new_data:
            raise DataError(
                f"{checkpoint.path} was trained on other data ({was}) than these ({are}): give the same data, "
                "--new-data to continue on these, or another --results-dir"
            )
        return [f"other data than the checkpoint's: {was} -> {are}"]


def _parameter_names(module: nn.Module) -> dict[nn.Parameter, str]:
    return {tensor: name for name, tensor in own_tensors(module).items() if isinstance(tensor, nn.Parameter)}


def _commit() -> str | None:
    """The commit of the checkout this package runs from, with a + if it was changed; None elsewhere."""
    folder = Path(__file__).parents[1]
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # fails where another project's checkout holds us
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "-uno", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
