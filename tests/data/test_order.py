import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfmtok.data.order import BlockOrder, SampleOrder
from vfmtok.errors import DataError


def take(order_of_rank, steps: int, samples_seen: int) -> tuple[list[list[int]], int]:
    """The global batches of ``steps`` steps, put together from all ranks, and the position after them."""
    runs = [list(itertools.islice(order.batches(samples_seen), steps)) for order in order_of_rank]
    if steps == 0:
        return [], samples_seen
    for step in zip(*runs, strict=True):  # the ranks agree on where they are
        assert len({(batch.epoch, batch.samples_seen) for batch in step}) == 1
    batches = [np.concatenate([batch.indices for batch in step]).tolist() for step in zip(*runs, strict=True)]
    return batches, runs[0][-1].samples_seen


def ranks(size: int, **options) -> list[SampleOrder]:
    return [SampleOrder(world_size=size, rank=rank, **options) for rank in range(size)]


@settings(max_examples=150, deadline=None)
@given(
    per_rank=st.integers(1, 5),
    first_world=st.sampled_from([1, 2, 3, 4, 6]),
    second_world=st.sampled_from([1, 2, 3, 4, 6]),
    num_samples=st.integers(1, 150),
    seed=st.integers(0, 2**40),
    stop=st.integers(0, 30),
    drop_last=st.booleans(),
)
def test_nothing_is_lost_or_repeated_across_a_resume(
    per_rank, first_world, second_world, num_samples, seed, stop, drop_last
):
    global_batch = 12 * per_rank
    options = {"num_samples": num_samples, "global_batch": global_batch, "seed": seed, "drop_last": drop_last}
    if drop_last and num_samples < global_batch:
        with pytest.raises(DataError, match="do not fill"):
            SampleOrder(**options)
        return
    steps = SampleOrder(**options).steps_per_epoch
    total = 3 * steps
    stop = min(stop, total)
    before, position = take(ranks(first_world, **options), stop, 0)
    after, end = take(ranks(second_world, **options), total - stop, position)
    uninterrupted, _ = take(ranks(1, **options), total, 0)
    assert before + after == uninterrupted
    kept = num_samples // global_batch * global_batch if drop_last else num_samples
    assert end == 3 * kept
    for epoch in range(3):
        seen = list(itertools.chain(*uninterrupted[epoch * steps : (epoch + 1) * steps]))
        assert len(seen) == len(set(seen)) == kept
        assert set(seen) <= set(range(num_samples))
        sizes = [len(batch) for batch in uninterrupted[epoch * steps : (epoch + 1) * steps]]
        assert sizes[:-1] == [global_batch] * (steps - 1)


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 6))
def test_a_short_batch_is_shared_evenly(num_samples, per_rank, world):
    orders = ranks(world, num_samples=num_samples, global_batch=per_rank * world, drop_last=False)
    last = (num_samples - 1) // (per_rank * world) * per_rank * world
    sizes = [len(order.batch(last).indices) for order in orders]
    assert max(sizes) - min(sizes) <= 1


def test_every_epoch_is_shuffled_anew_and_drops_others():
    order = SampleOrder(1000, 300, seed=3)
    epochs = [order.epoch_order(epoch) for epoch in range(3)]
    for first, second in itertools.combinations(epochs, 2):
        assert (first == second).mean() < 0.02
    assert set(epochs[0][900:]) != set(epochs[1][900:])
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
    order = SampleOrder(7, 3, drop_last=False, shuffle=False)
    assert [batch.indices.tolist() for batch in itertools.islice(order.batches(), 3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_epoch_of_imagenet_takes_less_than_a_second():
    start = time.process_time()
    order = SampleOrder(1_281_167, 256).epoch_order(1)
    assert time.process_time() - start < 1
    assert len(np.unique(order)) == 1_281_167


def test_a_global_batch_that_does_not_divide_is_refused():
    with pytest.raises(DataError, match=r"global batch 10 is not divisible by 4"):
        SampleOrder(100, 10, world_size=4)


def test_blocks_come_once_and_from_where_they_were_left():
    order = BlockOrder([np.array([4, 5]), np.array([9]), np.array([0, 1, 2])])
    batches = list(order.batches())
    assert [batch.indices.tolist() for batch in batches] == [[4, 5], [9], [0, 1, 2]]
    for i, batch in enumerate(batches):
        assert [b.indices.tolist() for b in order.batches(batch.samples_seen)] == [
            b.indices.tolist() for b in batches[i + 1 :]
        ]
