"""Batches of images from records: PyTorch's DataLoader, made to survive what happens in long runs.

One iterator runs through all epochs, so workers stay and prefetching does not stop at an epoch's end. The
sequence of batches depends on the order and the transform alone:

- a bad record is replaced by the next good one, counted, named and logged; more than 1% of them is an error;
- workers that die (the kernel kills those that take too much memory) are started again at the next batch.

Shapes: B this rank's batch, V views (absent for transforms that give one crop), S crop side.
"""

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vfmtok.data.order import BlockOrder, OrderedBatch, SampleOrder
from vfmtok.data.records import RecordDataset
from vfmtok.errors import DataError

BAD_FRACTION = 0.01  # of an epoch, of a cache, of an evaluation: more bad records than this are an error
MAX_BAD_IN_A_ROW = 100  # records tried in the place of one

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadRecord:
    index: int
    name: str  # "" if not even that could be read
    reason: str
    epoch: int  # in which it was met


@dataclass
class Batch:
    """One step's samples of one rank."""

    images: Tensor  # (B,3,S,S) or (B,V,3,S,S) uint8
    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64: records read, which are not the ordered ones where those were bad
    epochs: Tensor  # (B,) int64: of each sample; a batch may hold the end of one and the beginning of the next
    samples_seen: int  # by all ranks, once this step is done: what a checkpoint saves
    bad: list[BadRecord] = field(default_factory=list)

    def pin_memory(self) -> "Batch":
        """Called by DataLoader's pinning thread."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("images", "labels", "indices", "epochs")}
        return replace(self, **pinned)


class ImageLoader:
    """An endless (or, with ``BlockOrder``, finite) iterator of ``Batch``.

    Args:
        records: where images come from.
        transform: (encoded bytes, epoch, index) -> uint8 tensor; its result must depend on nothing else.
        order: which samples, in which order.
        samples_seen: where to start: 0, or what the last finished ``Batch`` of another run says.
        num_workers: processes of this rank; 0 reads in this process.
        start_method: of the workers, "fork" or "spawn"; None takes Python's default.
        prefetch: batches each worker prepares ahead.
        pin_memory: None: where CUDA is there.
        max_restarts: how often dead workers are replaced before the run stops.
        max_bad_fraction: of an epoch's samples; None leaves it to the caller to count bad records.

    Attributes:
        samples_seen: of the batches handed out.
        bad_records: index -> BadRecord, everything met so far.
        restarts: how often workers died.
        wait_seconds, total_seconds: time spent waiting for data, and since ``reset_timing``.
    """

    def __init__(
        self,
        records: RecordDataset,
        transform: Callable[[bytes, int, int], Tensor],
        order: SampleOrder | BlockOrder,
        *,
        samples_seen: int = 0,
        num_workers: int = 4,
        start_method: str | None = None,
        prefetch: int = 2,
        pin_memory: bool | None = None,
        max_restarts: int = 5,
        max_bad_fraction: float | None = BAD_FRACTION,
    ):
        self.samples_seen, self.order, self.max_restarts = samples_seen, order, max_restarts
        self.max_bad_fraction = max_bad_fraction
        self.bad_records: dict[int, BadRecord] = {}
        self.restarts = 0
        self._source = _BatchSource(records, transform)
        self._options = {
            "num_workers": num_workers,
            "multiprocessing_context": start_method if num_workers else None,
            "prefetch_factor": prefetch if num_workers else None,
            "worker_init_fn": _ignore_interrupts,
            "generator": torch.Generator(),  # or every start would draw from the run's own generator
            "pin_memory": torch.cuda.is_available() if pin_memory is None else pin_memory,
        }
        self._iterator: Iterator[Batch] | None = None
        self._workers: list[multiprocessing.Process] = []
        self._bad_of_epoch: tuple[int, set[int]] = (-1, set())  # epoch, records replaced in it
        self.reset_timing()

    def __iter__(self) -> "ImageLoader":
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            StopIteration: a ``BlockOrder`` is through.
            DataError: too many bad records, or workers that keep dying.
        """
        start = time.perf_counter()
        try:
            batch = self._next_despite_deaths()
            if isinstance(batch, DataError):
                raise batch
            self._account(batch)
        except BaseException:
            self.close()  # left to the garbage collector, workers may take seconds to stop
            raise
        self.wait_seconds += time.perf_counter() - start
        self.samples_seen = batch.samples_seen
        return batch

    def close(self) -> None:
        """Stop the workers; iterating again starts new ones where this left off."""
        self._iterator, self._workers = None, []

    # ---- data-wait time --------------------------------------------------------------------

    def reset_timing(self) -> None:
        self.wait_seconds, self._timing_start = 0.0, time.perf_counter()

    @property
    def total_seconds(self) -> float:
        return time.perf_counter() - self._timing_start

    @property
    def wait_share(self) -> float:
        """Waiting for data as a fraction of all time since ``reset_timing``."""
        return self.wait_seconds / max(self.total_seconds, 1e-9)

    # ---- workers that die ------------------------------------------------------------------

    def _next_despite_deaths(self) -> Batch | DataError:
        while True:
            if self._iterator is None:
                self._start()
            try:
                return next(self._iterator)
            except (RuntimeError, OSError, EOFError):
                # A killed worker shows as DataLoader's RuntimeError or as a broken pipe or socket.
                if not self._a_worker_died():
                    raise
            self._count_death()  # out here, where no traceback keeps the broken iterator alive

    def _a_worker_died(self) -> bool:
        for _ in range(20):  # its sockets close a little before the process is gone
            if not all(worker.is_alive() for worker in self._workers):
                return True
            time.sleep(0.05 if self._workers else 0)
        return False

    def _count_death(self) -> None:
        codes = ", ".join(sorted({str(worker.exitcode) for worker in self._workers if not worker.is_alive()}))
        self.close()
        self.restarts += 1
        if self.restarts > self.max_restarts:
            raise DataError(
                f"data workers died {self.restarts} times (exit codes {codes}; -9 is usually too little memory: "
                "use fewer workers)"
            )
        log.warning(
            f"a data worker died (exit codes {codes}): all started again at sample {self.samples_seen}, "
            f"restart {self.restarts} of at most {self.max_restarts}"
        )

    def _start(self) -> None:
        others = set(multiprocessing.active_children())
        in_main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if in_main_thread else None
        loader = DataLoader(
            self._source, batch_size=None, sampler=_Steps(self.order, self.samples_seen), **self._options
        )
        self._iterator = iter(loader)
        self._workers = [child for child in multiprocessing.active_children() if child not in others]
        if in_main_thread and self._workers:
            # DataLoader's handler would raise wherever the program is when a worker dies, in the midst of a
            # training step too. Without it the death is seen where we wait for the worker, within 5 seconds.
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)

    # ---- bad records -----------------------------------------------------------------------

    def _account(self, batch: Batch) -> None:
        for bad in batch.bad:
            if bad.index not in self.bad_records:
                log.warning("bad record %d%s: %s", bad.index, f" ({bad.name})" if bad.name else "", bad.reason)
                self.bad_records[bad.index] = bad
            if bad.epoch != self._bad_of_epoch[0]:  # epochs never fall, also within a batch
                self._bad_of_epoch = (bad.epoch, set())
            self._bad_of_epoch[1].add(bad.index)
            self._check_share(bad)

    def _check_share(self, last: BadRecord) -> None:
        if self.max_bad_fraction is None:
            return
        share = self.order.samples_per_epoch / self.order.world_size
        allowed = self.max_bad_fraction * share
        if self.order.world_size > 1:  # this rank's share may hold a bad record more by chance
            allowed = max(allowed, 1)
        count = len(self._bad_of_epoch[1])
        if count > allowed:
            raise DataError(
                f"{count} bad records among the {share:.0f} samples of an epoch, more than "
                f"{self.max_bad_fraction:.0%}; the last: record {last.index} {last.name}: {last.reason}"
            )


def _ignore_interrupts(worker_id: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one decides when its workers stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Steps:
    """The sampler: the order's steps from a position on."""

    def __init__(self, order: SampleOrder | BlockOrder, samples_seen: int):
        self.order, self.samples_seen = order, samples_seen

    def __iter__(self) -> Iterator[OrderedBatch]:
        return self.order.batches(self.samples_seen)


class _BatchSource(Dataset):
    """Makes whole batches, in a worker, so that a batch crosses to the main process as one tensor."""

    def __init__(self, records: RecordDataset, transform: Callable[[bytes, int, int], Tensor]):
        self.records, self.transform = records, transform

    def __getitem__(self, step: OrderedBatch) -> Batch | DataError:
        try:
            return self._read(step)
        except DataError as error:  # raised in a worker, its one line would arrive wrapped in a traceback
            return error

    def _read(self, step: OrderedBatch) -> Batch:
        bad: list[BadRecord] = []
        images, labels, indices = None, [], []
        for place, (epoch, index) in enumerate(zip(step.epochs.tolist(), step.indices.tolist(), strict=True)):
            crop, label, index = self._next_good(epoch, index, bad)
            if images is None:  # channels last in memory, as decoded
                *views, channels, height, width = crop.shape
                # By NumPy, which asks for huge pages: taking possession of small ones costs 2% of a batch's time.
                images = np.empty((len(step.indices), *views, height, width, channels), np.uint8)
                images = torch.from_numpy(images).movedim(-1, -3)
            images[place].copy_(crop)
            labels.append(label)
            indices.append(index)
        if images is None:
            images = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
        labels, indices = torch.tensor(labels, dtype=torch.int64), torch.tensor(indices, dtype=torch.int64)
        return Batch(images, labels, indices, torch.from_numpy(step.epochs), step.samples_seen, bad)

    def _next_good(self, epoch: int, index: int, bad: list[BadRecord]) -> tuple[Tensor, int, int]:
        """The crop, label and index of record ``index``, or of the first good one after it."""
        for _ in range(MAX_BAD_IN_A_ROW):
            name = ""
            try:
                record = self.records[index]
                name = record.name
                return self.transform(record.image, epoch, index), record.label, index
            except DataError as error:
                bad.append(BadRecord(index, name, str(error), epoch))
            index = (index + 1) % len(self.records)
        raise DataError(f"{MAX_BAD_IN_A_ROW} bad records in a row; the last: {bad[-1].name}: {bad[-1].reason}")


def check_bad(bad: int, records: RecordDataset) -> None:
    """Raise DataError if more than 1% (and more than one) are bad."""
    if bad > max(1, BAD_FRACTION * len(records)):
        raise DataError(
            f"{bad} of the {len(records)} records of {records.path} are bad, more than {BAD_FRACTION:.0%}: mend the "
            "dataset (`vfmtok stats` lists them)"
        )
