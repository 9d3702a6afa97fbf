"""SIGTERM and Ctrl-C: the step at hand is finished, the run is saved, and the program ends with 0.

A validation or a picture is not finished: it ends between two batches, and is made up when the run continues.
"""

import signal
from types import FrameType

import torch
import torch.distributed as dist


class Stopped(Exception):
    """Ends a validation or a picture, in all processes at the same batch."""


class StopRequest:
    """Set by SIGTERM or SIGINT, or by ``ask``, in any process; all processes learn of it at the same step.

    A context manager: the signals' former handlers come back at its end. A second Ctrl-C interrupts at once.
    """

    def __init__(self):
        self._here = False
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def __enter__(self) -> "StopRequest":
        self._former = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        if self._pending is not None:
            self._pending[1].wait()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._here and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._here = True

    def ask(self) -> None:
        """As a signal does."""
        self._here = True

    def __call__(self) -> bool:
        """Once per step in every process: has any process been asked to stop?

        With several processes the answer is about the step before: the question travels by gloo on the CPU while
        the step is computed, so nobody waits for it.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self._here
        asked = self._answer()
        self._ask()
        return asked

    def raise_if_asked(self) -> None:
        """Between the batches of a validation or a picture, in every process: raises Stopped, in all, if any process
        has been asked to stop. It waits for the answer."""
        asked = self._here
        if dist.is_available() and dist.is_initialized():
            before = self._answer()
            self._ask()
            asked = self._answer() or before
        if asked:
            self._here = True  # the next question is answered alike
            raise Stopped

    def _ask(self) -> None:
        flag = torch.tensor(int(self._here))  # on the CPU: gloo, also where gradients travel by NCCL
        self._pending = (flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True))

    def _answer(self) -> bool:
        """To the question that is on its way, if any."""
        if self._pending is None:
            return False
        (flag, work), self._pending = self._pending, None
        work.wait()
        return bool(flag.item())
