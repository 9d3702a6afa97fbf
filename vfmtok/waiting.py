"""How PyTorch's threads on a CPU wait for each other, chosen before PyTorch is loaded.

Threads of OpenMP spin where they wait, by default for some milliseconds. Alone on a machine that costs nothing. Beside
another busy process a thread that spins holds the core that the thread it waits for needs, and a training with two
threads on two cores takes many times as long. The OpenMP runtimes read how to wait from the environment when they are
loaded, so a command chooses at its very start: ``choose``. Whatever the user has set is left alone.

Needs no PyTorch, and does nothing once that is loaded: then it is too late.
"""

import math
import os
import re
import sys
import time
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path

# Any of them says how to wait: OpenMP's own, GNU's (PyTorch's wheels for Linux), Intel's and LLVM's.
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
BUSY = 0.5  # a load below that is the system's own
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


def choose(program: str, environment: MutableMapping[str, str] | None = None) -> None:
    """Set how this process's threads will wait, and say so in one line on stderr, unless there is nothing to choose.

    Args:
        program: its name, for the line.
        environment: of the process, by default.
    """
    environment = os.environ if environment is None else environment
    if "torch" in sys.modules or not hasattr(os, "getloadavg"):
        return
    cores = usable_cores()
    if not chosen(cores, math.inf, environment):  # whatever the load: looking at it takes tenths of a second
        return
    load = busy_processes()
    settings = chosen(cores, load, environment)
    environment.update(settings)
    if settings and int(environment.get("RANK") or 0) == 0:
        said = " ".join(f"{name}={value}" for name, value in settings.items())
        print(f"{program}: {cores} cores, load {load:.1f}: threads wait without spinning ({said})", file=sys.stderr)


def chosen(cores: int, load: float, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to set on a machine with ``cores`` for this process, where ``load`` others compute on average:
    none, or those of waiting without spinning, where threads and others are more than the cores."""
    if any(name in environment for name in VARIABLES):
        return {}
    threads = thread_count(cores, environment)
    return dict(PASSIVE) if threads > 1 and load >= BUSY and threads + load > cores else {}


def thread_count(cores: int, environment: Mapping[str, str]) -> int:
    """How many threads PyTorch will take."""
    told = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(told) if told.isdecimal() and int(told) else cores


def busy_processes(seconds: float = 0.2, looks: int = 3) -> float:
    """How many cores of ours others keep busy: by the clock of the cores while this process sleeps, where the system
    says that, and no more than the load of the last minute. The load alone would count an earlier stage of one's own
    (an installation, say), and two threads that wait without spinning take half as long again on an idle machine.
    For the same reason it is the least of several ``looks``: what ends within them, such as the last of an earlier
    process, does not count."""
    found = os.getloadavg()[0]
    for _ in range(looks):
        if found < BUSY:
            break
        busy = _busy_cores(seconds)
        if busy is None:
            break
        found = min(found, busy)
    return found


def _busy_cores(seconds: float) -> float | None:
    """Of ours, while this process sleeps for so long; None where the system does not say."""
    before = _idle_seconds()
    begun = time.monotonic()
    time.sleep(seconds)
    after, elapsed = _idle_seconds(), time.monotonic() - begun
    if not before or len(before) != len(after):
        return None
    idle = sum(end - start for start, end in zip(before, after, strict=True))
    return max(0.0, len(after) - idle / elapsed)


def _idle_seconds() -> list[float]:
    """Of every core that this process may use, since the machine started; empty where the system does not say."""
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        cores = {int(line[0].removeprefix("cpu")): line for line in lines if re.fullmatch(r"cpu\d+", line[0])}
        ticks = [int(cores[core][4]) + int(cores[core][5]) for core in _allowed_cores()]  # idle, or waiting for a disk
        return [count / os.sysconf("SC_CLK_TCK") for count in ticks]
    except (OSError, ValueError, LookupError):
        return []


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(_allowed_cores())


def _allowed_cores() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
