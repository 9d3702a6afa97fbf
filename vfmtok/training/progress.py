"""What follows every step of any training: numbers, a validation, a checkpoint, pictures, and the end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vfmtok import distributed
from vfmtok.training import run_folder
from vfmtok.training.health import Alarms, Meter, Pace, SkippedSteps, peak_memory
from vfmtok.training.interruption import Stopped, StopRequest
from vfmtok.training.recipe import Plan
from vfmtok.training.run_log import RunLog
from vfmtok.training.saving import BackgroundSaver, Saver
from vfmtok.training.state import RunState

Between = Callable[[], None]  # called between two batches of long work, which it may end by raising Stopped


@dataclass
class Progress:
    """
    Attributes:
        source: of the batches; it knows how long the training waited for it, and the bad records it met.
        num_samples: of the data.
        skipped: by optimizer, "model" among them.
        validate: measure the state and log the numbers.
        draw, owes_pictures: where pictures are wanted besides: draw them, and whether those of this step are missing.
        picture_steps: how often.
        more_numbers: (steps per second) -> further numbers of a report.
        shown: (word, name of a number) of what stands beside the progress bar.
    """

    state: RunState
    plan: Plan
    world: distributed.World
    saver: Saver | BackgroundSaver
    log: RunLog
    stop: StopRequest
    source: Any
    num_samples: int
    skipped: dict[str, SkippedSteps]
    validate: Callable[[RunLog, Between], None]
    draw: Callable[[RunLog, Between], None] | None = None
    owes_pictures: Callable[[], bool] = lambda: False
    picture_steps: int = 1
    more_numbers: Callable[[float], dict[str, float]] = lambda rate: {}
    shown: tuple[tuple[str, str], ...] = (("loss", "loss/total"),)

    def __post_init__(self):
        self.meter, self.alarms, self.pace = Meter(), Alarms(), Pace(self.state.step)
        self.stopped = False

    def begin(self) -> None:
        """What an earlier stop left out is made up, before the first step."""
        with self.pace.paused():
            if run_folder.owes_validation(self.state, self.plan.steps):
                self._unless_stopped(self.validate)
                if not self.stopped:
                    self.saver.save(self.state, must=False)
            if self.draw is not None and self.owes_pictures():
                self._unless_stopped(self.draw)

    @property
    def steps_are_left(self) -> bool:
        return not self.stopped and self.state.step < self.plan.steps

    def after_step(
        self, samples_seen: int, losses: dict[str, Tensor], norms: dict[str, Tensor], learning_rate: float
    ) -> None:
        """All that follows a step, in every process.

        Args:
            samples_seen: by all processes, this step included.
            losses: by name, of the last pass, for a run that diverges.
            norms: of the gradients, by optimizer.
        """
        state, run, plan = self.state, self.state.recipe.run, self.plan
        for name, norm in norms.items():
            self.skipped[name].add(norm)
        self.meter.add({f"grad_norm/{name}": norm for name, norm in norms.items()})
        state.step, state.samples_seen = state.step + 1, samples_seen
        self.log.advance()
        for skipped in self.skipped.values():
            skipped.check(state.step, losses)

        if self.saver.has_failed():
            self.stop.ask()  # it ends with the reason when all have stopped
        self.stopped = self.stop()
        at_end = state.step == plan.steps
        if state.step % run.log_every == 0 or at_end or self.stopped:
            self._report(learning_rate)
        with self.pace.paused():
            if state.step % run.validate_every == 0 or at_end:
                self._unless_stopped(self.validate)
            due = state.step % run.save_every == 0 or at_end or self.stopped
            if due:
                self.saver.save(self.state, must=at_end or self.stopped)
            if self.draw is not None and (state.step % self.picture_steps == 0 or at_end):
                self._unless_stopped(self.draw)
                if self.stopped and not due:
                    self.saver.save(self.state, must=True)

    def finish(self, folder: Path) -> None:
        """Say how the run ended, and mark its folder if it made all its steps and owes nothing.

        Raises VFMTokError, in all processes: a checkpoint that was on its way to the disk could not be written.
        """
        self.saver.finish()
        if self.stopped:
            steps = f"step {self.state.step} of {self.plan.steps}"
            self.log.say(f"stopped after {steps}; the same command continues")
        else:
            run_folder.mark_finished(folder, self.plan.steps, self.world)
            self.log.say(f"finished {self.plan.steps} steps; the run is in {folder}")

    def _unless_stopped(self, work: Callable[[RunLog, Between], None]) -> None:
        """A run that is to stop saves first, and owes what it leaves out."""
        if not self.stopped:
            try:
                work(self.log, self.stop.raise_if_asked)
            except Stopped:
                self.stopped = True

    def _report(self, learning_rate: float) -> None:
        """Numbers since the last report, and the alarms that follow. Every process takes part."""
        state, rate = self.state, self.pace.read(self.state.step)
        values = self.meter.read() | self.more_numbers(rate)
        values |= {
            "lr": learning_rate,
            "epoch": state.samples_seen / self.num_samples,
            "images_per_second": rate * state.recipe.run.global_batch,
            "data_wait": self.source.wait_share,
            "memory_gib": peak_memory(self.world.device) / 2**30,
            "skipped_steps": sum(skipped.total for skipped in self.skipped.values()),
            "bad_records": len(self.source.bad_records),
        }
        self.source.reset_timing()
        shown = " ".join(f"{word} {values[name]:.4g}" for word, name in self.shown if name in values)
        self.log.scalars(state.step, values, shown)
        for line in self.alarms.check(values):
            self.log.alarm(state.step, line)
