"""The cache of a data set's codes, computed once, in one memory-mapped array: ids here, latents in latent_cache.py.

``cache_layout.py`` says how it lies on the disk. A cache may keep several codes of every view: of the nearest codes of
its latents, of the second nearest, ... (R ranks). They count as views of their own here, rank by rank within a view of
the image.

Shapes: N records, V views of each, K tokens, B batch; ... is a code: (K,) ids, or (M,C,h,w) of latents.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vfmtok.code import Code, Ids, Latents
from vfmtok.data.cache_layout import (
    VERSION,
    Rows,
    code_in,
    identity,
    make_array,
    named,
    open_array,
    read_metadata,
    write_all,
    write_metadata,
)
from vfmtok.data.loader import BAD_FRACTION
from vfmtok.data.transforms import CounterRandom
from vfmtok.errors import DataError
from vfmtok.metrics.usage import count_codes

TO_DO, DONE, REPLACED = 0, 1, 2


def check_tokenizer(cache: "Cache", expected: str) -> None:
    """Raise DataError unless the cache was made by the tokenizer with this hash."""
    found = cache.metadata["tokenizer_hash"]
    if found != expected:
        raise DataError(
            f"the {cache} was made by another tokenizer (hash {found[:12]}..., this one has "
            f"{expected[:12]}...): run `vfmtok codes` with this tokenizer"
        )


def as_code(rows: np.ndarray, code: Code) -> Tensor:
    """What ``decode`` takes of stored rows: (n,K) -> ids int64; (n,M,C,h,w) -> latents (n,C,h,w) float32, the means
    where there are mean and standard deviation."""
    if isinstance(code, Latents):
        return torch.from_numpy(rows[:, 0].astype(np.float32))
    return torch.from_numpy(rows.astype(np.int64))


# --------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------


class Cache:
    """A complete cache, read through a memory map that every process opens for itself.

    What its rows are is the business of ``CodeCache`` and ``LatentCache``.

    Attributes:
        path, metadata: the folder, and the content of its cache.json.
        num_views, classes: from the metadata.
        num_ranks: R, codes of every view of the image; ``num_views`` is a multiple of it.
        code: what ``tokenizer.code`` was.
        labels: (N,) int64.
    """

    holds: type  # of code

    def __init__(self, path: str | Path):
        """Raises DataError if there is no cache, it is unfinished or damaged, or its codes are of the other kind."""
        self.path = Path(path)
        self.metadata = read_metadata(self.path)
        if not self.metadata["complete"]:
            raise DataError(f"the {self} is not complete: run the `vfmtok codes` that made it again")
        self.code = code_in(self.metadata)
        if not isinstance(self.code, self.holds):
            wanted = "ids" if self.holds is Ids else "latents"
            raise DataError(f"{path} is a {named(self.metadata)} ({self.code}); what is needed here are {wanted}")
        self.num_views, self.num_ranks = len(self.metadata["views"]), self.metadata.get("ranks", 1)
        self.classes: list[str] | None = self.metadata["classes"]
        self._rows = self._open()
        labels = open_array(self.path / "labels.npy", self._rows.shape[:1], np.int64)
        self.labels = torch.from_numpy(np.array(labels))

    def _open(self) -> np.memmap:
        layout = Rows.of(self.metadata)
        return open_array(self.path / layout.file, (self.metadata["num_samples"], *layout.shape), layout.dtype)

    def __str__(self) -> str:
        return f"{named(self.metadata)} {self.path}"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_sequences(self) -> int:
        """N*R: what an epoch of a generator's training has. Sequence n is of record n // R, in its rank n % R."""
        return len(self) * self.num_ranks

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """(n,V,...) of records ``indices`` (n,), as they are stored."""
        return self._rows[indices]

    def view_for(self, seed: int, epoch: int, index: int) -> int:
        """The view of record ``index`` to train on: drawn again every epoch, the same for any workers or processes."""
        return CounterRandom(seed, epoch, index).below(self.num_views // self.num_ranks)

    def _drawn(
        self, indices: Sequence[int] | np.ndarray, seed: int, epochs: Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, Tensor]:
        """Of sequences ``indices`` (B,) in epochs (B,): (B,...) of the drawn view, as stored, and labels (B,)."""
        records, ranks = np.divmod(np.asarray(indices), self.num_ranks)
        views = np.array([self.view_for(seed, int(e), int(i)) for e, i in zip(epochs, records, strict=True)], np.int64)
        return self._rows[records, views * self.num_ranks + ranks], self.labels[torch.from_numpy(records)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}  # a pickled memory map would be the whole file

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = self._open()


class CodeCache(Cache):
    """Of ids. ``num_tokens`` and ``codebook_size`` are from the metadata."""

    holds = Ids

    def __init__(self, path: str | Path):
        """As of every ``Cache``."""
        super().__init__(path)
        self.num_tokens: int = self.metadata["num_tokens"]
        self.codebook_size: int = self.metadata["codebook_size"]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """cache[i, view] -> ids (K,) int64, label."""
        index, view = key
        return torch.from_numpy(self._rows[index, view].astype(np.int64)), int(self.labels[index])

    def flat_ids(self) -> np.ndarray:
        """(N*V*K,), mapped: record by record, view by view."""
        return self._rows.reshape(-1)

    def batch(
        self, indices: Sequence[int] | np.ndarray, seed: int, epochs: Sequence[int] | np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Of sequences ``indices`` (B,) in epochs (B,): ids (B,K) of the drawn view, labels (B,), both int64."""
        ids, labels = self._drawn(indices, seed, epochs)
        return torch.from_numpy(ids.astype(np.int64)), labels

    def code_counts(self) -> list[Tensor]:
        """How often each code of each segment occurs in all views, (V,) int64 each."""
        parts = zip(self.code.segments, self.code.slices(), strict=True)
        return [count_codes(self._rows[..., place], segment.size) for segment, place in parts]


# --------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------


class CodeCacheWriter:
    """Writes rows of a cache, from any number of processes at once, each its own rows.

    Rows are written with plain writes, not through the map: a full disk is then an error here instead
    of a killed process, and nodes that share a file system do not overwrite each other's pages.
    """

    def __init__(self, path: str | Path):
        """Open the cache that ``begin`` made."""
        self.path = Path(path)
        self.metadata = read_metadata(self.path)
        self._count, self._layout = self.metadata["num_samples"], Rows.of(self.metadata)
        self._files = {}
        for name in (self._layout.file, "labels.npy", "progress.bin"):
            try:
                self._files[name] = os.open(self.path / name, os.O_RDWR)
            except OSError as error:
                raise DataError(f"cannot write {self.path / name}: {error.strerror}") from None
        labels = open_array(self.path / "labels.npy", (self._count,), np.int64)
        self._starts = {self._layout.file: self.written_rows().offset, "labels.npy": labels.offset}

    def progress(self) -> np.ndarray:
        """(N,) uint8: TO_DO, DONE or REPLACED."""
        progress = np.fromfile(self.path / "progress.bin", np.uint8)
        if len(progress) != self._count:
            raise DataError(f"{self.path / 'progress.bin'} was cut: remove the folder and start again")
        return progress

    def written_rows(self) -> np.memmap:
        """(N,V,...), mapped: what is written so far."""
        return open_array(self.path / self._layout.file, (self._count, *self._layout.shape), self._layout.dtype)

    def blocks_to_do(self, size: int) -> list[np.ndarray]:
        """Blocks [k * size, (k + 1) * size) of rows that are not all done.

        Blocks do not depend on what was done by whom, so every row is always computed in the same company
        and an interrupted cache ends with the bytes of an uninterrupted one.
        """
        done = self.progress() != TO_DO
        starts = range(0, self._count, size)
        return [np.arange(s, min(s + size, self._count)) for s in starts if not done[s : s + size].all()]

    def write(self, start: int, codes: np.ndarray, labels: np.ndarray, replaced: np.ndarray) -> None:
        """Rows from ``start`` on: codes (b,V,...), labels (b,), replaced (b,) bool. They are on the disk on return.

        Raises DataError: the disk refuses, or a latent is not finite in the cache's numbers.
        """
        codes = self._as_stored(codes, start)
        rows = {self._layout.file: codes, "labels.npy": np.ascontiguousarray(labels, np.int64)}
        try:
            for name, array in rows.items():
                file = self._files[name]
                write_all(file, array.tobytes(), self._starts[name] + start * array[:1].nbytes)
                os.fsync(file)
            marks = np.where(replaced, REPLACED, DONE).astype(np.uint8)
            write_all(self._files["progress.bin"], marks.tobytes(), start)  # only once the rows are safe
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}; what was written before is intact") from None

    def _as_stored(self, codes: np.ndarray, start: int) -> np.ndarray:
        assert codes.shape[1:] == self._layout.shape
        if self._layout.dtype.kind == "u":
            assert codes.max(initial=0) < self.metadata["codebook_size"]
            return np.ascontiguousarray(codes, self._layout.dtype)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(codes, self._layout.dtype)
        wrong = np.flatnonzero(~np.isfinite(stored).reshape(len(stored), -1).all(1))
        if len(wrong):
            finite = np.isfinite(codes[wrong[0]]).all()
            found = f"beyond the range of {stored.dtype} (--latent-dtype float32)" if finite else "not finite"
            raise DataError(f"a latent of record {start + wrong[0]} is {found}: it does not go into {self.path}")
        return stored

    def check_replaced(self) -> None:
        """Raise DataError if more than 1% of the records (and more than one) were bad.

        Counted are all rows of the cache, whoever wrote them in whichever run, so starting again does not help.
        """
        replaced = np.flatnonzero(self.progress() == REPLACED)
        if len(replaced) > max(1, BAD_FRACTION * self._count):
            rows = ", ".join(map(str, replaced[:5])) + (", ..." if len(replaced) > 5 else "")
            raise DataError(
                f"{len(replaced)} of the {self._count} records for {self.path} are bad (rows {rows}), more than "
                f"{BAD_FRACTION:.0%}: mend the dataset and begin in another folder"
            )

    def finish(self, **metadata: Any) -> None:
        """Declare the cache complete. Raises DataError if rows are missing or too many records were bad."""
        self.check_replaced()
        progress = self.progress()
        if (progress == TO_DO).any():
            raise DataError(f"{(progress == TO_DO).sum()} of {self._count} rows of {self.path} are not written")
        replaced = np.flatnonzero(progress == REPLACED).tolist()
        write_metadata(self.path, {**self.metadata, **metadata, "replaced_rows": replaced, "complete": True})
        with contextlib.suppress(OSError):  # complete it is; a progress file left over does no harm
            (self.path / "progress.bin").unlink()

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])


def begin(path: str | Path, metadata: dict[str, Any]) -> bool:
    """Make an empty cache, or find the one to continue at ``path``.

    Args:
        metadata: the fields of ``cache_layout.identity``, "classes" and whatever else is worth keeping.

    Returns:
        False if the very cache is there and complete, else True.

    Raises:
        DataError: something else is there, or the disk has no room for the whole cache.
    """
    path, metadata = Path(path), {"version": VERSION, **metadata, "complete": False}
    if (path / "cache.json").is_file():
        found = read_metadata(path)
        for key in identity(metadata):
            unknown = key == "precision" and metadata[key] is None  # imported; older imports say "fp32"
            if found.get(key) != metadata[key] and not unknown:
                raise DataError(
                    f"{path} holds a {named(found)} with another {key} ({_short(found.get(key))}, "
                    f"not {_short(metadata[key])}): choose another folder"
                )
        return not found["complete"]
    count, layout = metadata["num_samples"], Rows.of(metadata)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if strangers := set(os.listdir(path)) - {layout.file, "labels.npy", "progress.bin", "cache.json.part"}:
            raise DataError(f"{path} is not empty (it has {min(strangers)}): choose another folder")
        make_array(path / layout.file, (count, *layout.shape), layout.dtype)
        make_array(path / "labels.npy", (count,), np.int64)
        (path / "progress.bin").write_bytes(bytes(count))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
    write_metadata(path, metadata)  # last: a folder without it is started again
    return True


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
