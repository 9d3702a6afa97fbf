"""When the checkpoints of a run are written: while it waits, or from a copy while it goes on (``run.async_save``).

In the background:

- The run waits for the copy in host memory alone (``weights/host_copy.py``). Each process has what it writes: the first
  one all of a model that every process has, and each its slices of a sharded one.
- A thread then does what is done otherwise while the run waits: files under a temporary name, hashed, synced, renamed.
  A checkpoint is complete or not there, whenever the process ends. Threads of several processes agree by a group of
  their own.
- One checkpoint at a time is written: the next one waits for it, and says so. At its end, also when it is to stop, the
  run waits for the last one.
- A write that fails asks the run to stop, in all processes at the same step, and there it ends with one line. The
  checkpoint before stays.

``torch.distributed.checkpoint.async_save`` would copy and write the tensors of one part so, but not what makes several
parts a checkpoint: hashes, and the name that appears at the end.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vfmtok import distributed
from vfmtok.errors import ConfigError, SharedError
from vfmtok.training.recipe import RunConfig
from vfmtok.training.run_log import RunLog
from vfmtok.training.state import RunState
from vfmtok.weights.checkpoint import CheckpointFolder
from vfmtok.weights.host_copy import HostCopy


class Saver:
    """Writes while the run waits."""

    def __init__(self, checkpoints: CheckpointFolder, log: RunLog, world: distributed.World):
        self.checkpoints, self.log, self.world = checkpoints, log, world

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def save(self, state: RunState, must: bool) -> None:
        """Write a checkpoint. Every process must call it, and waits: what the first one writes for the others may take
        long.

        Args:
            must: nothing comes after it. Only then a failure ends the run.

        Raises:
            VFMTokError: in all processes.
        """
        failure = None
        saved = state.checkpoint()
        try:
            if self.world.is_main or saved.is_sharded:
                path = self.checkpoints.save(saved)
                self.log.say(f"saved {path}")
        except OSError as error:
            failure = _not_written(saved.step, error)
        failure = distributed.gather(failure)[0]
        if failure is not None:
            if must:
                _fail(failure)
            self.log.alarm(saved.step, failure)

    def has_failed(self) -> bool:
        """After every step: whether the run is to stop, since a checkpoint could not be written. It never waits."""
        return False

    def finish(self) -> None:
        """Wait until all is written. Every process must call it. Raises VFMTokError, in all: it could not be."""


class BackgroundSaver:
    """Writes while the run goes on. Its methods are those of ``Saver``."""

    def __init__(self, checkpoints: CheckpointFolder, log: RunLog, world: distributed.World):
        self.checkpoints, self.log, self.world = checkpoints, log, world
        self._copy = HostCopy()
        self._group = distributed.new_patient_group()
        self._write: _Write | None = None  # at work in this process, or failed

    def __enter__(self) -> "BackgroundSaver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Whatever ends the run, what was begun is finished; only a second Ctrl-C does not wait for it."""
        if kind is None or issubclass(kind, Exception):
            failure = self._waited()
            if failure is not None:
                self.log.say(failure)

    def save(self, state: RunState, must: bool) -> None:
        """Copy a checkpoint and begin to write it. Every process must call it.

        Args:
            must: wait until it is written.

        Raises:
            VFMTokError: in all processes: the one before could not be written, or with ``must`` this one.
        """
        if self._write is not None and not self._write.is_done:
            begun = time.monotonic()
            self._write.wait()
            seconds, before = time.monotonic() - begun, self._write.step
            self.log.say(f"saving step {state.step} waited {seconds:.1f} s until step {before} was written")
        self.finish()
        saved = state.checkpoint()
        if self.world.is_main or saved.is_sharded:
            copied = self._copy.take(saved)
            self._write = _Write(saved.step, lambda: self.checkpoints.save(copied, self._group), self.world.device)
        if must:
            self.finish()

    def has_failed(self) -> bool:
        self._note_success()
        return self._write is not None and self._write.failure is not None

    def finish(self) -> None:
        failed = [failure for failure in distributed.gather(self._waited()) if failure is not None]
        if failed:
            _fail(failed[0])

    def _note_success(self) -> None:
        if self._write is not None and self._write.path is not None:
            self.log.say(f"saved {self._write.path}")
            self._write = None

    def _waited(self) -> str | None:
        """Wait for the write at hand; the line about its failure, or None."""
        if self._write is None:
            return None
        self._write.wait()
        self._note_success()
        if self._write is None:
            return None
        failure, self._write = _not_written(self._write.step, self._write.failure), None
        return failure


def saver(
    config: RunConfig, checkpoints: CheckpointFolder, log: RunLog, world: distributed.World
) -> Saver | BackgroundSaver:
    """What saves a run of this configuration; a context manager. Every process must have one."""
    return (BackgroundSaver if config.async_save else Saver)(checkpoints, log, world)


class _Write:
    """A checkpoint on its way to the disk, in a thread.

    Attributes:
        path, failure: of a write that is done, one of them.
    """

    def __init__(self, step: int, write: Callable[[], Path], device: torch.device):
        self.step = step
        self.path: Path | None = None
        self.failure: BaseException | None = None
        # A daemon: the interpreter's end does not wait for it, where a second Ctrl-C did not.
        self._thread = threading.Thread(target=self._run, args=(write, device), name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], Path], device: torch.device) -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # every thread begins at the first GPU, and would take memory there
            self.path = write()
        except BaseException as error:  # whatever it is, the thread that trains has to know
            self.failure = error

    @property
    def is_done(self) -> bool:
        return self.path is not None or self.failure is not None

    def wait(self) -> None:
        self._thread.join()


def _not_written(step: int, error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    reason = getattr(error, "strerror", None) or first or type(error).__name__
    return f"the checkpoint of step {step} could not be written ({reason}); the last one stays"


def _fail(text: str) -> None:
    """Raises, in a run of several processes in all of them."""
    raise (ConfigError if distributed.world_size() == 1 else SharedError)(text)
