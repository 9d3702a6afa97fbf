"""What a run does with its folder: begin in it, continue from its checkpoints, save into it."""

from pathlib import Path
from typing import Any

from vfmtok import distributed
from vfmtok.config import save_config
from vfmtok.errors import ConfigError
from vfmtok.training import checkpoint
from vfmtok.training.checkpoint import CheckpointFolder
from vfmtok.training.run_log import RunLog
from vfmtok.training.state import RunState


def prepare(folder: Path, recipe: Any) -> None:
    """Make the folder and write recipe.yaml. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_config(recipe, folder / "recipe.yaml")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None


def resume(
    state: RunState, checkpoints: CheckpointFolder, start_from: Path | None, total_steps: int, world: distributed.World
) -> list[str]:
    """Continue from the newest checkpoint, or from ``start_from`` where there is none. Returns lines for people."""
    saved = checkpoints.load_newest()
    if saved is None and start_from is not None:
        saved = checkpoint.load(start_from)
    if saved is None:
        return []
    lines = state.restore(saved, world.is_main)
    return [f"continuing from {saved.path}, step {state.step} of {total_steps}", *lines]


def save(state: RunState, checkpoints: CheckpointFolder, log: RunLog, world: distributed.World, must: bool) -> None:
    """Write a checkpoint in the first process. A failure ends the run only if nothing comes after it."""
    saved = state.checkpoint()
    if not world.is_main:
        return
    try:
        path = checkpoints.save(saved)
        log.say(f"saved {path}")
    except OSError as error:
        text = (
            f"the checkpoint of step {saved.step} could not be written ({error.strerror or error}); the last one stays"
        )
        if must:
            raise ConfigError(text) from None
        log.alarm(saved.step, text)
