"""The cache of a data set's latents: ``code_cache.py``'s twin, with statistics of all its rows.

Everything in it is in the tokenizer's own units; a generator normalises.

Shapes: N records, V views of each, M 1 or 2, B batch, (C,h,w) a latent.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.code import Latents
from vfmtok.data.cache_layout import code_in, read_metadata, write_metadata
from vfmtok.data.code_cache import Cache, CodeCache
from vfmtok.data.latent_statistics import LatentStatistics, Per, StatisticsSum

STATISTICS = "stats.safetensors"
_CHUNK = 2**22  # values read at a time


class LatentCache(Cache):
    """Of latents, or of the mean and standard deviation of each (``has_moments``), from which they are drawn."""

    holds = Latents

    @property
    def has_moments(self) -> bool:
        return self.metadata["posterior"] == "moments"

    @cached_property
    def statistics(self) -> LatentStatistics:
        """Over all records and views, of what is drawn where there are moments. Raises DataError, WeightsError."""
        return LatentStatistics.load(self.path / STATISTICS)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """cache[i, view] -> latents (C,h,w), or moments (2,C,h,w), float32; label."""
        index, view = key
        return _whole(self._rows[index, view][None])[0], int(self.labels[index])

    def batch(
        self, indices: Sequence[int] | np.ndarray, seed: int, epochs: Sequence[int] | np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Of records ``indices`` (B,) in epochs (B,), in the drawn view: latents (B,C,h,w), or moments (B,2,C,h,w),
        float32; labels (B,) int64."""
        rows, labels = self._drawn(indices, seed, epochs)
        return _whole(rows), labels

    def cells(self, records: np.ndarray, views: np.ndarray, places: np.ndarray) -> Tensor:
        """(n,C) float32: of records (n,), in views (n,), what lies at ``places`` (n,) in [0,h*w); means of moments."""
        flat = self._rows.reshape(*self._rows.shape[:4], -1)  # (N,V,M,C,h*w), still mapped
        return torch.from_numpy(flat[records, views, 0, :, places].astype(np.float32))

    def measure_again(self, per: Per) -> None:
        """Replace the statistics. Every process must call it. Raises DataError."""
        about = write_statistics(self.path, self._rows, per)
        with distributed.together():
            if distributed.is_main():
                write_metadata(self.path, {**self.metadata, "statistics": about})


def _whole(rows: np.ndarray) -> Tensor:
    """(B,M,C,h,w) -> float32, without M where it is 1."""
    values = torch.from_numpy(rows.astype(np.float32))
    return values[:, 0] if values.shape[1] == 1 else values


def open_cache(path: str | Path) -> CodeCache | LatentCache:
    """The cache at ``path``, whatever its codes are. Raises DataError, as both do."""
    kind = LatentCache if isinstance(code_in(read_metadata(Path(path))), Latents) else CodeCache
    return kind(path)


def measure(rows: np.ndarray, per: Per) -> LatentStatistics:
    """Of all rows (N,V,M,C,h,w) of a cache. Every process must call it. Raises DataError: they can't be normalised."""
    found = StatisticsSum(rows.shape[3:])
    with distributed.together():
        for chunk in _share(rows):  # (n,V,M,C,h,w)
            values = torch.from_numpy(chunk.astype(np.float64)).flatten(0, 1)  # (n*V,M,C,h,w)
            found.add(values[:, 0], values[:, 1] if values.shape[1] == 2 else None)
    return found.merged().statistics(per)


def write_statistics(path: Path, rows: np.ndarray, per: Per) -> dict[str, object]:
    """``measure`` the rows of the cache at ``path`` and write its stats.safetensors. Every process must call it.

    Returns:
        what cache.json says of them.

    Raises:
        DataError: they can't be normalised, or the disk refuses.
    """
    statistics = measure(rows, per)
    with distributed.together():
        if distributed.is_main():
            statistics.save(path / STATISTICS)
    return {"per": per, "count": statistics.count}


def _share(rows: np.ndarray) -> Iterator[np.ndarray]:
    """This process's chunks of consecutive records."""
    count = max(1, _CHUNK // rows[0].size)
    for start in range(distributed.rank() * count, len(rows), distributed.world_size() * count):
        yield np.asarray(rows[start : start + count])


def shown(statistics: LatentStatistics) -> str:
    """For people."""
    mean, std = statistics.mean, statistics.std
    per = "channel" if statistics.per == "channel" else "channel and place"
    return f"mean {mean.min():.3g} to {mean.max():.3g}, standard deviation {std.min():.3g} to {std.max():.3g} per {per}"
