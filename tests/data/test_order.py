import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfmtok.data.order import BlockOrder, SampleOrder
from vfmtok.errors import DataError


def ranks(size: int, **options) -> list[SampleOrder]:
    return [SampleOrder(world_size=size, rank=rank, **options) for rank in range(size)]


def take(orders: list[SampleOrder], steps: int, samples_seen: int) -> tuple[list[list[tuple[int, int]]], int]:
    """The global batches of ``steps`` steps as (epoch, index), put together from all ranks; the position after."""
    batches = []
    for step in itertools.islice(zip(*(order.batches(samples_seen) for order in orders), strict=True), steps):
        assert len({part.samples_seen for part in step}) == 1  # the ranks agree on where they are
        batches.append(
            [pair for part in step for pair in zip(part.epochs.tolist(), part.indices.tolist(), strict=True)]
        )
        samples_seen = step[0].samples_seen
    return batches, samples_seen


@settings(max_examples=200, deadline=None)
@given(
    num_samples=st.integers(1, 150),
    worlds=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    per_rank=st.lists(st.integers(1, 40), min_size=4, max_size=4),
    steps=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    seed=st.integers(0, 2**40),
    across_epochs=st.booleans(),
)
def test_nothing_is_lost_or_repeated_by_resumes(num_samples, worlds, per_rank, steps, seed, across_epochs):
    """Runs that each go on where the one before stopped, with other ranks and another global batch."""
    options = {"num_samples": num_samples, "seed": seed, "across_epochs": across_epochs}
    seen, position = [], 0
    for world, share, count in zip(worlds, per_rank, steps, strict=False):
        batches, end = take(ranks(world, global_batch=world * share, **options), count, position)
        seen += itertools.chain(*batches)
        for batch in batches:
            epochs = {epoch for epoch, _ in batch}
            room = num_samples - position % num_samples
            assert len(batch) == (world * share if across_epochs else min(world * share, room))
            assert across_epochs or len(epochs) == 1
            position += len(batch)
        assert end == position == len(seen)
    last = position // num_samples
    for epoch in range(last):
        assert sorted(index for e, index in seen if e == epoch) == list(range(num_samples))
    unfinished = [index for e, index in seen if e == last]
    assert len(unfinished) == len(set(unfinished)) == position % num_samples
    whole = itertools.chain(*take(ranks(1, global_batch=1, **options), position, 0)[0])
    assert seen == list(whole)  # the very sequence that any other run sees


def test_a_batch_holds_the_end_of_an_epoch_and_the_beginning_of_the_next():
    order = SampleOrder(5, 4, shuffle=False)
    second = order.batch(4)
    assert second.indices.tolist() == [4, 0, 1, 2] and second.epochs.tolist() == [0, 1, 1, 1]
    assert SampleOrder(2, 5, shuffle=False).batch(0).epochs.tolist() == [0, 0, 1, 1, 2]


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 6))
def test_a_short_batch_is_shared_evenly(num_samples, per_rank, world):
    orders = ranks(world, num_samples=num_samples, global_batch=per_rank * world, across_epochs=False)
    last = (num_samples - 1) // (per_rank * world) * per_rank * world
    sizes = [len(order.batch(last).indices) for order in orders]
    assert max(sizes) - min(sizes) <= 1


def test_every_epoch_is_shuffled_anew():
    order = SampleOrder(1000, 300, seed=3)
    epochs = [order.epoch_order(epoch) for epoch in range(3)]
    for first, second in itertools.combinations(epochs, 2):
        assert (first == second).mean() < 0.02
        assert sorted(first) == sorted(second) == list(range(1000))
    assert not np.array_equal(epochs[0], SampleOrder(1000, 300, seed=4).epoch_order(0))


def test_the_order_of_old_runs_stays():
    """These numbers were computed once; a change of them would break every resume of a run."""
    assert SampleOrder(8, 4, seed=1).epoch_order(2).tolist() == [1, 0, 4, 7, 6, 5, 3, 2]


def test_positions_are_uniform():
    """Where sample 0 lands over many epochs: chi-square over 10 tenths of the epoch."""
    order = SampleOrder(100, 10, seed=5)
    places = [int(np.flatnonzero(order.epoch_order(epoch) == 0)[0]) // 10 for epoch in range(2000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 30


def test_without_shuffling_the_order_is_the_datasets():
    order = SampleOrder(7, 3, across_epochs=False, shuffle=False)
    assert [batch.indices.tolist() for batch in itertools.islice(order.batches(), 3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_epoch_of_imagenet_takes_as_long_as_a_few_sorts():
    """Compared with one sort of as many words in the same run, so that a busy or slow machine counts for both."""
    words = np.random.default_rng(0).integers(0, 2**63, 1_281_167)
    start = time.process_time()
    np.argsort(words, kind="stable")
    one_sort = time.process_time() - start
    order = SampleOrder(1_281_167, 256)
    start = time.process_time()
    found = order.epoch_order(1)
    assert time.process_time() - start < 10 * one_sort
    for samples_seen in range(1_281_167, 1_281_167 + 256 * 1000, 256):  # the permutation is kept
        order.batch(samples_seen)
    assert time.process_time() - start < 30 * one_sort
    assert len(np.unique(found)) == 1_281_167


def test_a_global_batch_that_does_not_divide_is_refused():
    with pytest.raises(DataError, match=r"global batch 10 is not divisible by 4"):
        SampleOrder(100, 10, world_size=4)
    with pytest.raises(DataError, match="no samples"):
        SampleOrder(0, 10)


def test_blocks_come_once_and_from_where_they_were_left():
    order = BlockOrder([np.array([4, 5]), np.array([9]), np.array([0, 1, 2])])
    batches = list(order.batches())
    assert [batch.indices.tolist() for batch in batches] == [[4, 5], [9], [0, 1, 2]]
    for i, batch in enumerate(batches):
        assert [b.indices.tolist() for b in order.batches(batch.samples_seen)] == [
            b.indices.tolist() for b in batches[i + 1 :]
        ]
