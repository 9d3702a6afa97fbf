"""The commands of the steps, one after the other, each in a process of its own.

So a step that is killed, or takes the machine's memory, takes nothing with it; it continues as its command does: from
the last checkpoint, block or row. A step is done when its command has ended well, and then marked so. Whoever comes to
a folder, first or again, alone or beside others, does what is ready, unclaimed and not done.
"""

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfmtok.config import dump_config, save_config
from vfmtok.errors import VFMTokError
from vfmtok.files import read_json, replace_file, write_json
from vfmtok.study.claims import Claim, claim
from vfmtok.study.config import CHECKOUT
from vfmtok.study.images import write_images
from vfmtok.study.steps import Plan, Step, command_of

SHARED_AMONG_GPUS = ("vq_train.py", "train_c2i.py", "vqgan_test.py", "test_net.py", "codes")
POLL = 0.2  # seconds between looks at a command
WAIT = 2.0  # seconds between looks at what others do
LAST_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl


@dataclass(frozen=True)
class Runner:
    """
    Attributes:
        processes: of a command that GPUs can share; more than one are started by torchrun.
        say: prints a line.
    """

    plan: Plan
    processes: int = 1
    say: Callable[[str], None] = print

    def run(self, steps: list[Step], after: Callable[[Step], None] = lambda step: None) -> None:
        """Do these steps, or wait until another process has.

        Args:
            after: called when this process has done a step.

        Raises:
            VFMTokError: a step failed (names it, and the last line it said), or was stopped.
            KeyboardInterrupt: this process was; the step at hand has saved what it had.
        """
        waiting = False
        with _stopped_by_sigterm():
            while left := [step for step in steps if not step.done]:
                step, claimed = self._claim_one(left)
                if step is None:
                    if not waiting:
                        self.say(f"waiting for another process, which is at work at {left[0].folder.name}")
                    waiting = True
                    time.sleep(WAIT)
                    continue
                waiting = False
                try:
                    if not step.done:  # since we looked
                        self.say(f"{len(steps) - len(left) + 1} of {len(steps)}: {step.kind} of {step.for_people()}")
                        seconds = self._do(step, claimed)
                        self.say(f"  done in {seconds:.0f} s: {step.folder}")
                finally:
                    claimed.release()
                after(step)

    def _claim_one(self, steps: list[Step]) -> tuple[Step, Claim] | tuple[None, None]:
        for step in steps:
            if step.is_ready and not step.done:
                claimed = claim(step.folder)
                if claimed is not None:
                    return step, claimed
        return None, None

    def _do(self, step: Step, claimed: Claim) -> float:
        """Seconds that it took."""
        begun = time.monotonic()
        write_description(step)
        if step.script:
            self._command(step, claimed)
        else:
            write_images(step, self.plan)
        seconds = time.monotonic() - begun
        known = read_json(step.folder / "step.json") or {}
        write_json(step.folder / "step.json", {**known, "done": True, "seconds": seconds})
        return seconds

    def _command(self, step: Step, claimed: Claim) -> None:
        command = [*self.launcher(step), *command_of(step)]
        with _appended(step.log) as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            code = run_process(command, log, claimed)
        name = f"the {step.kind} of {step.for_people()}"
        if code:
            raise VFMTokError(
                f"{name} failed: {last_line(step.log)} (all of it: {step.log}; the same command continues)"
            )
        if step.is_training and not (step.out / "finished").exists():
            raise VFMTokError(f"{name} was stopped; the same command continues")

    def launcher(self, step: Step) -> list[str]:
        if self.processes == 1 or step.script not in SHARED_AMONG_GPUS:
            return [sys.executable]
        many = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        return [sys.executable, *many]


def run_process(command: list[str], log: Any, claimed: Claim | None = None) -> int:
    """Run a command to its end and return its exit code, negative for a signal.

    Ctrl-C and SIGTERM are passed on to it as SIGTERM, on which trainings save, and this process waits for its end. If
    this process is killed, it gets SIGTERM too (on Linux; elsewhere it keeps running, which the claim shows to others).
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
        start_new_session=True, preexec_fn=_end_with(os.getpid()),
    )  # fmt: skip
    if claimed is not None:
        claimed.name_child(process.pid)
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(POLL)
            if claimed is not None:
                claimed.beat()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.wait()
        raise


def _end_with(parent: int) -> Callable[[], None] | None:
    """For a child on Linux: ask the kernel for SIGTERM when its parent dies. kill -9 leaves no orphan so."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        libc.prctl(LAST_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM is like Ctrl-C within the context."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def write_description(step: Step) -> None:
    """step.json, and a training's recipe. Raises VFMTokError."""
    facts = {
        "kind": step.kind,
        "rows": step.for_people(),
        "flags": step.flags,
        "after": [p.folder.name for p in step.parents],
    }
    write_json(step.folder / "step.json", {**facts, "done": False})
    if step.recipe is not None:
        replace_file(step.folder / "recipe.yaml", lambda file: file.write(dump_config(step.recipe).encode()))


def write_configs(plan: Plan) -> None:
    """Configurations of the tokenizers whose weights are given. Raises VFMTokError."""
    for row in plan.rows:
        if row.recipe is None:
            file = Path(plan.weights_config(row)[1])
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                save_config(row.tokenizer, file)
            except OSError as error:
                raise VFMTokError(f"cannot write {file}: {error.strerror or error}") from None


@contextlib.contextmanager
def _appended(path: Path) -> Iterator[Any]:
    try:
        with open(path, "ab") as file:
            yield file
    except OSError as error:
        raise VFMTokError(f"cannot write {path}: {error.strerror or error}") from None


def last_line(path: Path) -> str:
    """What a command said last: of ours, the error."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    except OSError:
        return "nothing is known of it"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if ": error" in line or line.endswith("Error") or "Error:" in line]
    return (errors or lines or ["it said nothing"])[-1]
