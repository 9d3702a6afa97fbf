"""What a run does with its folder: begin in it, and continue from its checkpoints. ``saving.py`` saves into it."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vfmtok import distributed
from vfmtok.config import config_to_dict, save_config
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.training.run_log import RunLog
from vfmtok.training.state import RunState
from vfmtok.weights.checkpoint import CheckpointFolder, open_together
from vfmtok.weights.saved import SavedCheckpoint


@contextlib.contextmanager
def locked(folder: Path, world: distributed.World) -> Iterator[None]:
    """Keep other runs out of the folder, which is made, until the end of the context or of this process.

    Raises ConfigError, in all processes, if a run is at work in it or if it can't be made. A folder that was made here
    is removed if the run ends before it has written anything.
    """
    made = not folder.exists()
    with contextlib.ExitStack() as stack:
        with distributed.together():
            if world.is_main:
                stack.enter_context(_lock(folder))
        try:
            yield
        except BaseException:
            if world.is_main and made:
                with contextlib.suppress(OSError):  # what went wrong before is what the user needs to read
                    _remove_unused(folder)
            raise


def _remove_unused(folder: Path) -> None:
    if not [path for path in folder.iterdir() if path.name != LOCK]:
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _lock(folder: Path) -> IO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the run
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by loading workers
    except (BlockingIOError, PermissionError):
        file.close()
        raise ConfigError(f"another run is at work in {folder}: give another --results-dir, or wait for it") from None
    except OSError:
        pass  # a file system without locks
    return file


LOCK = "run.lock"
FINISHED = "finished"  # a file of a run that made all its steps, for scripts: a run that was stopped exits with 0, too


def prepare(folder: Path, recipe: Any) -> None:
    """Make the folder and write recipe.yaml; the run is not finished. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FINISHED).unlink(missing_ok=True)
        save_config(recipe, folder / "recipe.yaml")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None


def open_log(folder: Path, state: RunState, total_steps: int, world: distributed.World) -> RunLog:
    """The log of a run that continues from ``state``; only the first process writes it."""
    config = state.recipe.run
    return RunLog(
        folder,
        config,
        active=world.is_main,
        step=state.step,
        total_steps=total_steps,
        samples_per_step=config.global_batch,
        recipe=config_to_dict(state.recipe),
    )


def mark_finished(folder: Path, steps: int, world: distributed.World) -> None:
    """Leave the file that says so. A disk that is full by now does not undo the run."""
    if world.is_main:
        with contextlib.suppress(OSError):
            (folder / FINISHED).write_text(f"{steps} steps\n", encoding="utf-8")


def resume(
    state: RunState,
    checkpoints: CheckpointFolder,
    total_steps: int,
    world: distributed.World,
) -> list[str]:
    """Continue from the newest checkpoint, or from ``run.continue_from`` where there is none.

    Returns:
        lines for people.

    Raises:
        VFMTokError: in all: no checkpoint is whole, it is of another model or of other data, or the processes would
            begin at different places or with different data.
    """
    with distributed.together():  # all have read it before any restores: sharded weights are spread by all
        saved = checkpoints.open_newest()
        other = state.recipe.run.continue_from
        if saved is None and other is not None:
            saved = _open_other(Path(other).expanduser())
    with distributed.together():
        _check_agreement(saved, state.data)
        if saved is None:
            return []
        lines = state.restore(saved, world.is_main)
    return [f"continuing from {saved.path}, step {state.step} of {total_steps}", *lines]


def _check_agreement(saved: SavedCheckpoint | None, data: dict[str, Any]) -> None:
    """All processes found the same, which folders of single machines and late listings of shared ones need not be."""
    step, seen = (0, 0) if saved is None else (saved.step, saved.numbers["samples_seen"])
    dataset = f"a dataset of {data['samples']} (fingerprint {data['fingerprint'][:12]})"
    found = distributed.gather(f"step {step}, {seen} samples seen of {dataset}")
    other = next((rank for rank, place in enumerate(found) if place != found[0]), None)
    if other is not None:
        raise ConfigError(
            f"process 0 would begin at {found[0]}, process {other} at {found[other]}: the folder of the run and the "
            "data must be the same for all"
        )


def _open_other(path: Path) -> SavedCheckpoint:
    """Another run's newest checkpoint, or the one named. Raises WeightsError, in all processes."""
    is_run = (path / "checkpoints").is_dir()
    with distributed.together():
        if not is_run and not (path / "state.json").is_file():
            raise WeightsError(
                f"{path} is no checkpoint to continue from; run.start_from (--finetune) takes weights alone"
            )
    if all(distributed.gather(is_run)):
        found = CheckpointFolder(path / "checkpoints").open_newest()
        if found is None:
            raise WeightsError(f"{path} has no finished checkpoint yet")
        return found
    return open_together(path)


def owes_validation(state: RunState, last_step: int) -> bool:
    """Whether the run was stopped at a step of validation, before it or within it."""
    due = state.step > 0 and (state.step % state.recipe.run.validate_every == 0 or state.step == last_step)
    return due and state.metrics.get("step") != state.step
