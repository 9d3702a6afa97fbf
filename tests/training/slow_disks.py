"""Checkpoint folders on disks that are slow, full or stuck, for runs that save in the background."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from training_runs import last_step

from vfmtok.training import generator_run
from vfmtok.weights import checkpoint

PATIENCE = 240  # seconds after which a test has failed: on a busy machine a process takes a minute or two to start


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.002)


class SlowFolder(checkpoint.CheckpointFolder):
    """Writes a checkpoint no sooner than the run has made two steps beyond it, or all of its 12."""

    def save(self, saved, group=None):
        later = min(saved.step + 2, 12)
        wait_until(lambda: last_step(self.folder.parent) >= later, f"step {later}, while step {saved.step} is written,")
        assert saved.step not in self.steps()
        return super().save(saved, group)


class FullFolder(checkpoint.CheckpointFolder):
    """Has room for one checkpoint."""

    def save(self, saved, group=None):
        if saved.step > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().save(saved, group)


class TerminatingFolder(checkpoint.CheckpointFolder):
    """The run gets SIGTERM while the checkpoint of step 4 is written."""

    def save(self, saved, group=None):
        if saved.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        later = saved.step + (saved.step == 4)
        wait_until(lambda: last_step(self.folder.parent) >= later, "the step that is finished")
        return super().save(saved, group)


def of_generators(kind: type[checkpoint.CheckpointFolder]) -> None:
    """Runs of generators in this process have such a folder from now on."""
    generator_run.CheckpointFolder = kind


def stick(step: int) -> None:
    """From now on a checkpoint of this step is never finished in this process: its first file is written, no more."""
    honest = checkpoint.sha256

    def sha256(path: Path) -> str:
        while f"step_{step:07d}.tmp" in str(path):
            time.sleep(1)
        return honest(path)

    checkpoint.sha256 = sha256
