"""Which samples come next: a function of the seed and of how many samples were seen, nothing else.

Every epoch has its own permutation. A global batch is a slice of it, and a rank's batch a slice of that, so
a run can stop anywhere and go on with other ranks or workers: ``samples_seen`` is all that is to be saved.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vfmtok.errors import DataError


@dataclass(frozen=True)
class OrderedBatch:
    """What one rank reads for one step."""

    epoch: int
    indices: np.ndarray  # (b,) int64: this rank's samples of the step, possibly none of a short last batch
    samples_seen: int  # by all ranks, once this step is done


class SampleOrder:
    """The order of samples of a run, as one rank sees it.

    Args:
        num_samples: of the dataset.
        global_batch: samples of a step, over all ranks.
        seed: of the permutations.
        world_size, rank: how many share a step, and which one this is.
        drop_last: leave out an epoch's last ``num_samples % global_batch`` samples (others every epoch);
            otherwise the epoch ends with a short batch, of which some ranks may have fewer or none.
        shuffle: permute; otherwise every epoch is 0, 1, 2, ...

    ``samples_seen`` counts the samples of finished steps from the start of the run. With ``drop_last``, the
    epoch's length depends on the global batch, so keep the global batch when resuming within an epoch.

    Raises:
        DataError: the ranks can't share a global batch equally, or an epoch would be empty.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch: int,
        seed: int = 0,
        *,
        world_size: int = 1,
        rank: int = 0,
        drop_last: bool = True,
        shuffle: bool = True,
    ):
        if global_batch < 1 or global_batch % world_size:
            raise DataError(f"global batch {global_batch} is not divisible by {world_size} processes")
        self.num_samples, self.global_batch, self.seed = num_samples, global_batch, seed
        self.world_size, self.rank, self.shuffle = world_size, rank, shuffle
        self.samples_per_epoch = num_samples // global_batch * global_batch if drop_last else num_samples
        if self.samples_per_epoch < 1:
            raise DataError(f"{num_samples} samples do not fill one global batch of {global_batch}")
        self._permutation: tuple[int, np.ndarray] | None = None  # of the epoch asked for last

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.samples_per_epoch / self.global_batch)

    def batch(self, samples_seen: int) -> OrderedBatch:
        """This rank's part of the step that follows ``samples_seen`` samples.

        The rank's part is contiguous; a short batch is split as evenly as it goes.
        """
        epoch, start = divmod(samples_seen, self.samples_per_epoch)
        end = min(start + self.global_batch, self.samples_per_epoch)
        count = end - start
        first, last = (start + count * part // self.world_size for part in (self.rank, self.rank + 1))
        return OrderedBatch(epoch, self.epoch_order(epoch)[first:last], samples_seen + count)

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
                words = np.random.Philox(key=[self.seed & (2**64 - 1), 0x6F72646572], counter=[0, 0, 0, epoch])
                order = np.argsort(words.random_raw(self.num_samples), kind="stable")
            else:
                order = np.arange(self.num_samples)
            self._permutation = (epoch, order)
        return self._permutation[1]


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
                yield OrderedBatch(0, block, end)
