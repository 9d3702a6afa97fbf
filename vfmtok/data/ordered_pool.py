"""Work spread over processes, results in the order of the work."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from vfmtok.errors import DataError

Work = TypeVar("Work")
Result = TypeVar("Result")


def default_workers(tasks: int) -> int:
    """Processes worth starting for this many images: none for a few, at most one per core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, tasks // 2000)


def ordered_results(function: Callable[[Work], Result], tasks: Iterable[Work], workers: int) -> Iterator[Result]:
    """``map(function, tasks)`` in ``workers`` processes; below 2 in this one.

    At most three tasks per worker are under way or waiting to be taken, which bounds the memory.

    Raises:
        DataError: a worker died.
    """
    end_if_reimported()
    if workers < 2:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")  # fork would copy open LMDB environments and threads
    pool = ProcessPoolExecutor(workers, context, initializer=_end_with_parent)
    waiting = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) >= 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process died, perhaps for lack of memory: run the same command to continue (a script of your own "
            "must call this below `if __name__ == '__main__':`)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def end_if_reimported() -> None:
    """End a worker that is still importing the main script. Workers import it, so one that calls us without
    the guard ``if __name__ == "__main__":`` would do the whole work again in each of them.

    Raises:
        SystemExit: with the line that says so.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # what multiprocessing itself looks at
        raise SystemExit("vfmtok: this script needs `if __name__ == '__main__':` above what starts worker processes")


def _end_with_parent() -> None:
    """Workers leave Ctrl-C to the parent, and end when it is killed: the queue they wait on would not
    tell them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sentinel = multiprocessing.parent_process().sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
