"""Which samples come next: a function of the seed and of how many samples were seen, nothing else.

Every epoch is a permutation of all samples. Laid end to end the epochs are one endless sequence; a global batch
is the slice of it that begins at ``samples_seen``, and a rank's batch a slice of that. So a run can stop after
any step and continue with other ranks, workers or another global batch: ``samples_seen`` is all that is to be saved.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vfmtok.errors import DataError

WINDOW = 4  # shards that are in use at once, where they are read one after another


@dataclass(frozen=True)
class OrderedBatch:
    """What one rank reads for one step."""

    epochs: np.ndarray  # (b,) int64: the epoch of each sample, never falling
    indices: np.ndarray  # (b,) int64: this rank's samples of the step, possibly none of a short last batch
    samples_seen: int  # by all ranks, once this step is done


def evenly_spaced(count: int, among: int) -> np.ndarray:
    """Up to ``count`` (n,) int64 of the places 0 ... ``among`` - 1, from the first to the last at equal distances."""
    return np.linspace(0, among - 1, min(count, among)).round().astype(np.int64)


class SampleOrder:
    """The order of samples of a run, as one rank sees it.

    Args:
        num_samples: of the dataset.
        global_batch: samples of a step, over all ranks.
        seed: of the permutations.
        world_size, rank: how many share a step, and which one this is.
        across_epochs: batches run on from one epoch into the next, so all are full (for training); otherwise
            an epoch ends with a short batch, of which some ranks may have fewer or none (for evaluation).
        shuffle: permute; otherwise every epoch is 0, 1, 2, ...
        shard_sizes: samples of each shard of the dataset, in order, where shards are costly to come by: the permutation
            then keeps the samples of a shard together, mixed with those of ``WINDOW`` shards.

    ``samples_seen`` counts the samples of finished steps from the start of the run; divided by ``num_samples``
    it gives the epoch and the place in it, whatever the batches were. Every sample comes once per epoch.

    Raises:
        DataError: the ranks can't share a global batch equally, or there are no samples.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch: int,
        seed: int = 0,
        *,
        world_size: int = 1,
        rank: int = 0,
        across_epochs: bool = True,
        shuffle: bool = True,
        shard_sizes: np.ndarray | None = None,
    ):
        if global_batch < 1 or global_batch % world_size:
            raise DataError(f"global batch {global_batch} is not divisible by {world_size} processes")
        self.num_samples, self.global_batch, self.seed = num_samples, global_batch, seed
        self.world_size, self.rank = world_size, rank
        self.across_epochs, self.shuffle, self.shard_sizes = across_epochs, shuffle, shard_sizes
        self.samples_per_epoch = num_samples
        if num_samples < 1:
            raise DataError("the dataset has no samples")
        self._permutation: tuple[int, np.ndarray] | None = None  # of the epoch asked for last

    def batch(self, samples_seen: int) -> OrderedBatch:
        """This rank's part of the step that follows ``samples_seen`` samples.

        The rank's part is contiguous; a short batch is split as evenly as it goes.
        """
        count = self.global_batch
        if not self.across_epochs:
            count = min(count, self.num_samples - samples_seen % self.num_samples)
        epochs, places = np.divmod(self.positions(samples_seen + count, count), self.num_samples)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            indices[epochs == epoch] = self.epoch_order(epoch)[places[epochs == epoch]]
        return OrderedBatch(epochs, indices, samples_seen + count)

    def positions(self, end: int, count: int | None = None) -> np.ndarray:
        """(b,) int64: where in the endless sequence this rank's samples lie, of the step that ends at ``end`` samples
        seen and has ``count``, by default a whole global batch. No two samples of a run have the same position."""
        count = self.global_batch if count is None else count
        first, last = (end - count + count * part // self.world_size for part in (self.rank, self.rank + 1))
        return np.arange(first, last)

    def batches(self, samples_seen: int = 0) -> Iterator[OrderedBatch]:
        """Every following step, without end."""
        while True:
            batch = self.batch(samples_seen)
            yield batch
            samples_seen = batch.samples_seen

    def epoch_order(self, epoch: int) -> np.ndarray:
        """All ``num_samples`` indices (int64) in the order of an epoch.

        Sorting raw Philox words keeps the order for good: NumPy may change ``permutation``, but not these.
        """
        if self._permutation is None or self._permutation[0] != epoch:
            if self.shuffle:
                words = self._words(0x6F72646572, epoch, self.num_samples)
                keys = words if self.shard_sizes is None else self._near_their_shard(words, epoch)
                order = np.argsort(keys, kind="stable")
            else:
                order = np.arange(self.num_samples)
            self._permutation = (epoch, order)
        return self._permutation[1]

    def _words(self, stream: int, epoch: int, count: int) -> np.ndarray:
        """(count,) uint64, uniform."""
        key = [self.seed & (2**64 - 1), stream]
        return np.random.Philox(key=key, counter=[0, 0, 0, epoch]).random_raw(count)

    def _near_their_shard(self, words: np.ndarray, epoch: int) -> np.ndarray:
        """Keys to sort by: the place of a sample's shard in a permutation of the shards, plus [0,WINDOW) at random."""
        places = np.empty(len(self.shard_sizes), np.uint64)
        places[np.argsort(self._words(0x736861726473, epoch, len(places)), kind="stable")] = np.arange(len(places))
        keys = np.repeat(places << np.uint64(32), self.shard_sizes)
        keys += (words >> np.uint64(32)) * np.uint64(WINDOW)
        return keys


class BlockOrder:
    """Given blocks of indices, once each: the order of work that is not training.

    Args:
        blocks: (b,) int64 arrays; ``samples_seen`` counts their indices.
    """

    def __init__(self, blocks: list[np.ndarray]):
        self.blocks, self.world_size = blocks, 1
        self.samples_per_epoch = sum(map(len, blocks))

    def batches(self, samples_seen: int = 0) -> Iterator[OrderedBatch]:
        """The blocks that begin at or after ``samples_seen``; then it ends."""
        end = 0
        for block in self.blocks:
            start, end = end, end + len(block)
            if start >= samples_seen:
                yield OrderedBatch(np.zeros(len(block), np.int64), block, end)
