"""What both trainings build alike: the first weights, the optimizers, the average."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from vfmtok.errors import ConfigError
from vfmtok.layers.precision import allow_tf32
from vfmtok.pretrained import loading as pretrained
from vfmtok.training import sharding
from vfmtok.training.ema import EMA
from vfmtok.training.optimizer import Stepper, build_optimizer
from vfmtok.training.recipe import EMAConfig, OptimizerConfig, RunConfig
from vfmtok.weights.checkpoint import CheckpointFolder, seed_step
from vfmtok.weights.name_maps import own_tensors


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
