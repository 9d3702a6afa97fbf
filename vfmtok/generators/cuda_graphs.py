"""On a GPU: the kernels of a step recorded once, and replayed for every token after it.

A step of sampling is hundreds of small kernels, and launching each of them from Python takes longer than it runs. A
recording (a CUDA graph) launches all of them at once. It reads and writes the very memory it was recorded with: so a
function is recorded for inputs in buffers of its own, and whatever else it reads (weights, a cache of fixed length)
must stay in its place.
"""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn


class Recorder(Protocol):
    """How a device records.

    Attributes:
        usable: False after a recording has failed; from then on functions are called.
    """

    usable: bool

    def warm_up(self, function: Callable[[], Tensor]) -> Tensor:
        """Call it where recordings are made, so that all that is done only once is done."""

    def record(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What runs the function's kernels, and their output, which every run overwrites. Raises RuntimeError."""


class Replayed:
    """Calls functions of tensors: of equal ones the first call warms up, the second is recorded, others replay that.

    Without a recorder, and after a recording that failed, it simply calls them. A recording and its memory are given
    back with this object, or when the next one has been made: keep the object until the device has done its work.
    """

    def __init__(self, recorder: Recorder | None):
        self._recorder = recorder
        self._key: Hashable = None  # of the function that was called last
        self._recorded_key: Hashable = None
        self._inputs: tuple[Tensor, ...] = ()  # the buffers that a recording reads
        self._run: Callable[[], None] | None = None
        self._output: Tensor | None = None

    def __call__(self, key: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs), which the next call may overwrite. Functions of one ``key`` (not None) run the same
        kernels on the same memory, but for what is in their inputs."""
        if self._recorder is None or not self._recorder.usable:
            return function(*inputs)
        if key != self._key:
            self._key, self._inputs = key, tuple(tensor.clone() for tensor in inputs)
            return self._recorder.warm_up(lambda: function(*self._inputs))
        for buffer, tensor in zip(self._inputs, inputs, strict=True):
            buffer.copy_(tensor)
        if key != self._recorded_key:
            try:
                self._run, self._output = self._recorder.record(lambda: function(*self._inputs))
            except RuntimeError as error:
                self._recorder.usable = False
                why = str(error).partition("\n")[0]
                warnings.warn(f"sampling goes on without CUDA graphs, and slower: {why}", stacklevel=2)
                return function(*inputs)
            self._recorded_key = key
        self._run()
        return self._output


class CUDAGraphs:
    """Records on one GPU, all on one side stream.

    One stream, because cuBLAS keeps a workspace for every stream it ever worked on: the same one in the warm-up, so
    that a recording's memory holds none. One at a time, because what another thread launched there would be recorded.
    """

    def __init__(self, device: torch.device):
        self.usable = True
        self._device, self._stream, self._lock = device, torch.cuda.Stream(device), threading.Lock()

    def warm_up(self, function: Callable[[], Tensor]) -> Tensor:
        with self._on_side_stream() as current:
            output = function()
            output.record_stream(current)
        return output

    def record(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Of other threads, such as NCCL's watchdog, calls to CUDA are none of this recording's business.
        recording = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        with self._on_side_stream(), recording:
            output = function()
        return graph.replay, output

    @contextlib.contextmanager
    def _on_side_stream(self) -> Iterator[torch.cuda.Stream]:
        """After what the current stream was given so far, and before what it is given next. Gives that stream."""
        current = torch.cuda.current_stream(self._device)
        with self._lock:
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):  # ends here even where a failed recording does not end its own
                yield current
            current.wait_stream(self._stream)


@functools.cache
def cuda_graphs(device: torch.device) -> CUDAGraphs | None:
    """The one of a GPU; None where there is none."""
    return CUDAGraphs(device) if torch.cuda.is_available() else None


RECORDERS: dict[str, Callable[[torch.device], Recorder | None]] = {"cuda": cuda_graphs}


def recorder_of(model: nn.Module) -> Recorder | None:
    """How steps of a model are recorded; None on devices that do not record, and for weights that are gathered from
    other processes in every step (FSDP)."""
    parameters = list(model.parameters())
    device = parameters[0].device
    whole = all(type(parameter) is nn.Parameter for parameter in parameters)
    return RECORDERS[device.type](device) if whole and device.type in RECORDERS else None
