"""What both trainings build alike: the first weights, the optimizers, the average."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from vfmtok import distributed
from vfmtok.config import read_tree
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.layers.precision import DTYPES, allow_tf32, bf16_slowdown, computes_bf16
from vfmtok.pretrained.finetuning import load_matching
from vfmtok.training import sharding
from vfmtok.training.ema import EMA
from vfmtok.training.muon import hidden_matrices
from vfmtok.training.optimizer import Stepper, build_optimizer
from vfmtok.training.recipe import EMAConfig, OptimizerConfig, RunConfig
from vfmtok.weights import saved
from vfmtok.weights.checkpoint import CheckpointFolder, newest_checkpoint, seed_step
from vfmtok.weights.name_maps import copy_strictly, own_tensors

Recipe = TypeVar("Recipe")  # a dataclass with a RunConfig ``run``


def before_models(run: RunConfig) -> None:
    """Switch TF32, and seed the first weights: equal in every process."""
    allow_tf32(run.tf32)
    seed_step(run.seed, -1, 0)


def settle_precision(recipe: Recipe, world: distributed.World) -> tuple[Recipe, list[str]]:
    """The recipe with ``run.precision: auto`` decided, the same in all processes, which must all call it.

    A run that continues keeps the precision of its checkpoint, on whatever machine; a new one takes what its devices
    are made for.

    Returns:
        the recipe; lines for people.
    """
    run, native = recipe.run, all(distributed.gather(computes_bf16(world.device)))
    if run.precision == "auto":
        before = distributed.gather(_precision_before(run))[0]
        chosen = before or ("bf16" if native else "none")
        words = {"bf16": "bfloat16 under autocast", "fp16": "float16 under autocast", "none": "float32"}[chosen]
        reason = "as its checkpoint" if before else f"the {world.device.type} computes bfloat16" if native else None
        notes = [f"precision: {words} ({reason or f'the {world.device.type} would only emulate bfloat16'})"]
        return dataclasses.replace(recipe, run=dataclasses.replace(run, precision=chosen)), notes
    if run.precision == "bf16" and not native:
        ratio = bf16_slowdown(world.device)
        return recipe, [
            f"run.precision bf16 (--mixed-precision): this {world.device.type} emulates it; a product takes "
            f"{ratio:.1f} times as long as in float32 (none)"
        ]
    return recipe, []


def _precision_before(run: RunConfig) -> str | None:
    """Of the checkpoint that the run will continue from, if there is one. What is wrong with it is found later."""
    for folder in (run.results_dir, run.continue_from):
        path = None if folder is None else Path(folder).expanduser()
        if path is not None and (path / "checkpoints").is_dir():
            path = CheckpointFolder(path / "checkpoints").newest()
        with contextlib.suppress(ConfigError):
            if path is not None and (path / "config.yaml").is_file():
                found = read_tree(path / "config.yaml").get("run", {}).get("precision")
                return found if found in DTYPES else None
    return None


def start_weights(
    model: nn.Module, run: RunConfig, checkpoints: CheckpointFolder, read: Callable[[Path], Any]
) -> list[str]:
    """Take the weights of ``run.start_from`` that fit, unless the run has checkpoints of its own: then it continues.

    Args:
        read: path -> weights, see ``pretrained.loading``.

    Returns:
        lines for people. Raises VFMTokError if there are no such weights, or none of them fits.
    """
    if run.start_from is None or checkpoints.steps():
        return []
    return load_matching(model, read(Path(run.start_from).expanduser()), sharding.keep_slice)


def start_discriminator(modules: Mapping[str, nn.Module], path: str, checkpoints: CheckpointFolder) -> list[str]:
    """Take the discriminator of another run, unless this one has checkpoints of its own.

    Args:
        modules: the discriminator by the name of its part, and what else is to be taken ("lecam") where the other run
            has it.
        path: the other run's folder, of which the newest checkpoint is taken, or a checkpoint's.

    Returns:
        lines for people. Raises WeightsError if there is none, or it is another one.
    """
    if checkpoints.steps():
        return []
    folder = Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        folder = newest_checkpoint(folder)
    name = next(iter(modules))
    if not saved.has_part(folder, name):
        raise WeightsError(f"adversarial.start_from: {folder} holds no {name}")
    taken = [name for name in modules if saved.has_part(folder, name)]
    for name in taken:
        source = f"of adversarial.start_from, {folder}"
        copy_strictly(modules[name], saved.read_part(folder, name), source)
    return [f"{' and '.join(taken)} of {folder}"]


def stepper(
    module: nn.Module, groups: list[dict[str, Any]], optimizer: OptimizerConfig, run: RunConfig, what: str = "the model"
) -> Stepper:
    """An optimizer of what learns in the groups (``{"params": parameters of module, ...}``), with clipping and loss
    scaling.

    Raises ConfigError if nothing learns, or this PyTorch lacks the optimizer.
    """
    groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    groups = [group for group in groups if group["params"]]
    learned = [parameter for group in groups for parameter in group["params"]]
    if not learned:
        raise ConfigError(f"there is nothing to train in {what}")
    built = build_optimizer(optimizer, groups, hidden_matrices(module))
    return Stepper(built, learned, optimizer.max_grad_norm, run.precision == "fp16")


def optimizer_notes(stepper: Stepper, world: distributed.World) -> list[str]:
    """Of the model's optimizer: lines for people. Raises ConfigError where it has nothing to do in this model."""
    return stepper.optimizer.describe(world.device) if hasattr(stepper.optimizer, "describe") else []


def average(model: nn.Module, config: EMAConfig) -> EMA | None:
    return EMA(own_tensors(model), config.decay, config.warmup) if config.enabled else None
