"""Training scripts in processes of their own, what they logged and saved, and how they are killed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch

from vfmtok.weights import checkpoint

ROOT = Path(__file__).parents[2]
_started: list[subprocess.Popen] = []


def start(
    recipe: Path, *arguments: str, processes: int = 1, script: str = "vq_train.py", told: int | IO = subprocess.PIPE
) -> subprocess.Popen:
    """What a test leaves running ends with it (``end_all``, in conftest.py). ``told`` takes stdout and stderr."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ROOT / script), "--recipe", str(recipe), *arguments]
    process = subprocess.Popen(command, env=environment, stdout=told, stderr=told, text=True)
    _started.append(process)
    return process


def finish(process: subprocess.Popen, timeout: float = 240) -> str:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err[-3000:]
    return out


def children(pid: int) -> list[int]:
    """The processes that this one started, oldest first."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # one that ends meanwhile
            fields = file.read_text().rpartition(")")[2].split()  # after the name, which may hold anything
            if int(fields[1]) == pid:
                found.append((int(fields[19]), int(file.parent.name)))
    return [child for _, child in sorted(found)]


def end_all() -> None:
    """Kill what still runs of everything that was started, with all that it started in turn."""
    while _started:
        process = _started.pop()
        if process.poll() is not None:
            continue
        family = [process.pid]
        for pid in family:
            family += children(pid)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def logged(folder: Path, name: str = "loss/total") -> dict[int, float]:
    """step -> value of the log."""
    text = (folder / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # the last may be half written
    return {line["step"]: line[name] for line in lines if name in line}


def last_step(folder: Path) -> int:
    """The last one logged, 0 before the first."""
    return max(logged(folder, "step"), default=0) if (folder / "log.jsonl").exists() else 0


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    """Until the run has logged this step."""
    deadline = time.monotonic() + 120
    while last_step(folder) < step:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, f"step {step} did not come"
        time.sleep(0.005)


def killed_again_and_again(begin: Callable[[], subprocess.Popen], folder: Path, kills: int, seed: int) -> list[int]:
    """Run ``begin()`` into ``folder`` a few steps further each time, by turns to SIGKILL and to SIGTERM.

    Args:
        begin: starts, or goes on with, a run that has far more steps to make than are waited for.

    Returns:
        the exit codes.
    """
    chance, ends = random.Random(seed), []
    for number in range(kills):
        seen = last_step(folder)
        process = begin()
        wait_for_step(folder, seen + chance.randint(1, 6), process)
        time.sleep(chance.uniform(0, 0.05))  # anywhere within a step, or in the midst of saving
        process.send_signal(signal.SIGTERM if number % 2 else signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        ends.append(process.returncode)
        assert process.returncode in (0, -signal.SIGKILL), err[-3000:]
    return ends


def final(folder: Path, step: int = 12) -> checkpoint.Checkpoint:
    return checkpoint.load(folder / f"checkpoints/step_{step:07d}")


def assert_same(a: checkpoint.Checkpoint, b: checkpoint.Checkpoint) -> None:
    """Bit for bit, whatever is saved: weights, average, discriminator, moments, codebook counts; and the position."""
    assert a.parts.keys() == b.parts.keys()
    for part, tensors in a.parts.items():
        assert tensors.keys() == b.parts[part].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b.parts[part][name]), f"{part}: {name}"
    assert a.numbers["samples_seen"] == b.numbers["samples_seen"]
