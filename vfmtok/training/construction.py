"""What both trainings build alike: the first weights, the optimizers, the average."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vfmtok.errors import ConfigError, WeightsError
from vfmtok.layers.precision import allow_tf32
from vfmtok.pretrained import loading as pretrained
from vfmtok.training import sharding
from vfmtok.training.ema import EMA
from vfmtok.training.optimizer import Stepper, build_optimizer
from vfmtok.training.recipe import EMAConfig, OptimizerConfig, RunConfig
from vfmtok.weights import saved
from vfmtok.weights.checkpoint import CheckpointFolder, newest_checkpoint, seed_step
from vfmtok.weights.name_maps import copy_strictly, own_tensors


def before_models(run: RunConfig) -> None:
    """Switch TF32, and seed the first weights: equal in every process."""
    allow_tf32(run.tf32)
    seed_step(run.seed, -1, 0)


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
    return pretrained.load_matching(model, read(Path(run.start_from).expanduser()), sharding.keep_slice)


def start_discriminator(modules: Mapping[str, nn.Module], path: str, checkpoints: CheckpointFolder) -> list[str]:
    """Take the discriminator of another run, unless this one has checkpoints of its own.

    Args:
        modules: "discriminator", and what else is to be taken ("lecam") where the other run has it.
        path: the other run's folder, of which the newest checkpoint is taken, or a checkpoint's.

    Returns:
        lines for people. Raises WeightsError if there is none, or it is another one.
    """
    if checkpoints.steps():
        return []
    folder = Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        folder = newest_checkpoint(folder)
    if not saved.has_part(folder, "discriminator"):
        raise WeightsError(f"adversarial.start_from: {folder} holds no discriminator")
    taken = [name for name in modules if saved.has_part(folder, name)]
    for name in taken:
        source = f"of adversarial.start_from, {folder}"
        copy_strictly(modules[name], saved.read_part(folder, name), source)
    return [f"{' and '.join(taken)} of {folder}"]


def stepper(
    groups: list[dict[str, Any]], optimizer: OptimizerConfig, run: RunConfig, what: str = "the model"
) -> Stepper:
    """An optimizer of what learns in the groups (``{"params": parameters, ...}``), with clipping and loss scaling.

    Raises ConfigError if nothing learns.
    """
    groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    groups = [group for group in groups if group["params"]]
    learned = [parameter for group in groups for parameter in group["params"]]
    if not learned:
        raise ConfigError(f"there is nothing to train in {what}")
    return Stepper(build_optimizer(optimizer, groups), learned, optimizer.max_grad_norm, run.precision == "fp16")


def average(model: nn.Module, config: EMAConfig) -> EMA | None:
    return EMA(own_tensors(model), config.decay, config.warmup) if config.enabled else None
