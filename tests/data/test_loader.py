import io
import itertools
import logging
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import BlockOrder, SampleOrder
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.data.transforms import EvaluationCrop, RandomCrop, TenCrop
from vfmtok.errors import DataError

COUNT = 240
BATCH = 14  # 240 is not a multiple: batches hold the end of an epoch and the beginning of the next


def png(seed: int) -> bytes:
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, bad: dict[int, bytes] | None = None, count: int = COUNT) -> RecordDataset:
    images = [(bad or {}).get(i) if i in (bad or {}) else png(i) for i in range(count)]
    write_records(path, [Record(image, i % 7, f"c{i % 7}/{i}.png") for i, image in enumerate(images)])
    return RecordDataset(path)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> RecordDataset:
    return write(tmp_path_factory.mktemp("records") / "lmdb")


def loader(records, samples_seen: int = 0, **options) -> ImageLoader:
    order = SampleOrder(len(records), BATCH, seed=2)
    return ImageLoader(records, RandomCrop(16, seed=1), order, samples_seen=samples_seen, **options)


def take(batches, steps: int) -> list[tuple]:
    return [
        (
            b.epochs.tolist(),
            b.samples_seen,
            b.indices.tolist(),
            b.labels.tolist(),
            b.images.contiguous().numpy().tobytes(),
        )
        for b in itertools.islice(batches, steps)
    ]


@pytest.fixture(scope="module")
def expected(records) -> list[tuple]:
    """35 steps (2 epochs and a bit) written down without any loader."""
    batches, crop = [], RandomCrop(16, seed=1)
    for batch in itertools.islice(SampleOrder(COUNT, BATCH, seed=2).batches(), 35):
        samples = [records[int(i)] for i in batch.indices]
        of_batch = zip(samples, batch.epochs.tolist(), batch.indices.tolist(), strict=True)
        images = torch.stack([crop(sample.image, epoch, index) for sample, epoch, index in of_batch])
        labels, pixels = [s.label for s in samples], images.contiguous().numpy().tobytes()
        batches.append((batch.epochs.tolist(), batch.samples_seen, batch.indices.tolist(), labels, pixels))
    return batches


@pytest.mark.parametrize("workers, method", [(0, None), (1, "fork"), (3, "fork"), (2, "spawn")])
def test_batches_do_not_depend_on_workers(records, expected, workers, method):
    records[0]  # the environment is open in this process when it forks
    batches = loader(records, num_workers=workers, start_method=method)
    assert take(batches, 35) == expected
    assert (
        take(loader(records, samples_seen=17 * BATCH, num_workers=workers, start_method=method), 3) == expected[17:20]
    )
    batches.close()
    assert take(batches, 1)[0][1] == 36 * BATCH  # closing does not lose the place


def test_the_global_generator_is_left_alone(records):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    take(loader(records, num_workers=1), 2)
    assert torch.equal(state, torch.get_rng_state())


def new_children(before: set) -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child not in before]


@pytest.mark.parametrize("moment", ["while waiting", "while training"])
def test_killed_workers_are_replaced_and_nothing_changes(records, expected, moment, caplog):
    before = set(multiprocessing.active_children())
    batches = loader(records, num_workers=2, prefetch=1)
    seen = take(batches, 3)
    victims = new_children(before)
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    if moment == "while training":  # DataLoader by itself would raise in the middle of this
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            torch.ones(10).sum()
    with caplog.at_level(logging.WARNING):
        seen += take(batches, 32)
    assert seen == expected
    assert batches.restarts == 1
    assert "a data worker died (exit codes -9)" in caplog.text
    batches.close()


class Suicide:
    """A transform that ends its process whenever it meets record 33."""

    def __call__(self, data, epoch, index):
        if index == 33:
            os.kill(os.getpid(), signal.SIGKILL)
        return EvaluationCrop(8)(data)


def test_workers_that_keep_dying_end_the_run(records):
    blocks = BlockOrder([np.array([i]) for i in range(30, 36)])
    batches = ImageLoader(records, Suicide(), blocks, num_workers=1, max_restarts=1)
    with pytest.raises(DataError, match=r"died 2 times \(exit codes -9"):
        list(batches)
    assert 0 < batches.samples_seen <= 3  # what was handed out before; prefetched batches died with the worker


class Broken:
    def __call__(self, data, epoch, index):
        raise RuntimeError("a bug, not a bad record")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_is_not_taken_for_a_death(records, workers):
    with pytest.raises(RuntimeError, match="a bug, not a bad record"):
        next(ImageLoader(records, Broken(), SampleOrder(COUNT, 16), num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_records_are_replaced_by_the_next_good_one(tmp_path, workers, caplog):
    records = write(tmp_path / "lmdb", {20: b"", 21: png(21)[:60]})
    order = SampleOrder(COUNT, 16, shuffle=False)
    batches = ImageLoader(records, EvaluationCrop(16), order, num_workers=workers)
    with caplog.at_level(logging.WARNING):
        epochs = [list(itertools.islice(batches, 15)) for _ in range(2)]
    for epoch in epochs:
        indices = torch.cat([batch.indices for batch in epoch]).tolist()
        assert indices == [*range(20), 22, 22, *range(22, COUNT)]
        assert epoch[1].labels[4] == 22 % 7
        assert torch.equal(epoch[1].images[4], EvaluationCrop(16)(png(22)))
    assert sorted(batches.bad_records) == [20, 21]
    assert "bad record 21 (c0/21.png): damaged image" in caplog.text
    assert caplog.text.count("c0/21.png") == 1  # said once


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_percent_of_bad_records_stop_the_run(tmp_path, workers):
    records = write(tmp_path / "lmdb", dict.fromkeys((5, 80, 81), b"junk"))
    order = SampleOrder(COUNT, 16, shuffle=False)
    batches = ImageLoader(records, EvaluationCrop(16), order, num_workers=workers)
    with pytest.raises(DataError, match=r"3 bad records among the 240 samples of an epoch, more than 1%") as caught:
        list(batches)
    assert "\n" not in str(caught.value) and "c4/81.png" in str(caught.value)


class BadAtTheTurn:
    """Two records are bad at the end of epoch 0 and two others at the beginning of epoch 1."""

    def __call__(self, data, epoch, index):
        if (epoch, index) in {(0, COUNT - 3), (0, COUNT - 2), (1, 0), (1, 1)}:
            raise DataError("a moment of weakness")
        return EvaluationCrop(8)(data)


def test_bad_records_are_counted_for_each_epoch_apart(records):
    """2 of 240 are allowed, and one batch holds all four."""
    batches = ImageLoader(records, BadAtTheTurn(), SampleOrder(COUNT, 70, shuffle=False), num_workers=0)
    epochs = torch.cat([batch.epochs for batch in itertools.islice(batches, 8)])
    assert epochs.tolist() == [0] * COUNT + [1] * COUNT + [2] * 80
    assert len(batches.bad_records) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_of_bad_records_is_one_line(tmp_path, workers):
    records = write(tmp_path / "lmdb", dict.fromkeys(range(120), b"junk"), count=120)
    with pytest.raises(DataError, match="100 bad records in a row") as caught:
        next(ImageLoader(records, EvaluationCrop(16), SampleOrder(120, 16), num_workers=workers))
    assert "\n" not in str(caught.value)


def test_two_ranks_together_read_what_one_reads(records, expected):
    ranks = []
    for rank in range(2):
        order = SampleOrder(COUNT, BATCH, seed=2, world_size=2, rank=rank)
        ranks.append(take(ImageLoader(records, RandomCrop(16, seed=1), order, num_workers=0), 20))
    for first, second, whole in zip(*ranks, expected[:20], strict=True):
        assert first[2] + second[2] == whole[2]
        assert first[4] + second[4] == whole[4]
        assert first[0] + second[0] == whole[0]


def test_an_empty_part_of_a_short_batch(records):
    order = SampleOrder(COUNT, 239, shuffle=False, across_epochs=False)
    order.world_size, order.rank, order.global_batch = 2, 0, 239
    last = list(itertools.islice(ImageLoader(records, EvaluationCrop(8), order, num_workers=0), 2))[1]
    assert len(last.images) == len(last.labels) == 0 and last.indices.dtype == torch.int64


def test_views_keep_their_axis(records):
    blocks = BlockOrder([np.arange(3)])
    (batch,) = list(ImageLoader(records, TenCrop(16), blocks, num_workers=0))
    assert batch.images.shape == (3, 10, 3, 16, 16)
    assert torch.equal(batch.images[2], TenCrop(16)(records[2].image))


class Slow:
    def __call__(self, data, epoch, index):
        time.sleep(0.02)
        return torch.zeros(3, 4, 4, dtype=torch.uint8)


def test_waiting_for_data_is_measured(records):
    batches = ImageLoader(records, Slow(), SampleOrder(COUNT, 4), num_workers=0)
    waiting = 0.0  # measured from outside, in the same run: a busy machine stretches both
    start = time.perf_counter()
    batches.reset_timing()
    for _ in range(3):
        before = time.perf_counter()
        next(batches)
        waiting += time.perf_counter() - before
        time.sleep(0.08)  # the training step
    share, whole = batches.wait_share, time.perf_counter() - start
    assert 3 * 4 * 0.02 <= batches.wait_seconds <= waiting
    assert batches.wait_seconds / whole <= share <= 1 - 3 * 0.08 / whole
    batches.reset_timing()
    assert batches.wait_seconds == 0
