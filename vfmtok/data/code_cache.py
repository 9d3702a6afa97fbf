"""The token cache: a dataset's ids, computed once, in one memory-mapped array.

    ids.npy         (N,V,K) uint16, or uint32 for codebooks of more than 65,536 codes
    labels.npy      (N,) int64
    cache.json      of which tokenizer, views and dataset, and whether it is complete
    progress.bin    N bytes while it is being written: 0 to do, 1 done, 2 done with the next good record

A cache may keep several codes of every view: of the nearest codes of its latents, of the second nearest, ... (R ranks).
They count as views of their own here, rank by rank within a view of the image.

Shapes: N records, V views of each, K tokens, B batch.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vfmtok.code import Ids, Segment, code_from_dict, square_grid
from vfmtok.data.loader import BAD_FRACTION
from vfmtok.data.transforms import CounterRandom
from vfmtok.errors import DataError
from vfmtok.files import replacing
from vfmtok.metrics.usage import count_codes

VERSION = 1
TO_DO, DONE, REPLACED = 0, 1, 2

# What makes ids what they are: a cache is continued, or found to be there already, only if all are equal.
IDENTITY = (
    "version", "tokenizer_hash", "dataset_fingerprint", "num_samples", "views", "seed", "image_size", "num_tokens",
    "codebook_size", "precision",
)  # fmt: skip


def check_tokenizer(cache: "CodeCache", expected: str) -> None:
    """Raise DataError unless the cache was made by the tokenizer with this hash."""
    found = cache.metadata["tokenizer_hash"]
    if found != expected:
        raise DataError(
            f"the token cache {cache.path} was made by another tokenizer (hash {found[:12]}..., this one has "
            f"{expected[:12]}...): run `vfmtok codes` with this tokenizer"
        )


# --------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------


class CodeCache:
    """A complete cache, read through a memory map that every process opens for itself.

    Attributes:
        path, metadata: the folder, and the content of its cache.json.
        num_views, num_tokens, codebook_size, classes: from the metadata.
        num_ranks: R, codes of every view of the image; ``num_views`` is a multiple of it.
        code: ``Ids``, what a row is.
        labels: (N,) int64.
    """

    def __init__(self, path: str | Path):
        """Raises DataError if there is no cache, or it is unfinished or damaged."""
        self.path = Path(path)
        self.metadata = _read_metadata(self.path)
        if not self.metadata["complete"]:
            raise DataError(f"the token cache {path} is not complete: run the `vfmtok codes` that made it again")
        self.num_views, self.num_tokens = len(self.metadata["views"]), self.metadata["num_tokens"]
        self.num_ranks: int = self.metadata.get("ranks", 1)
        self.codebook_size: int = self.metadata["codebook_size"]
        self.code = _code_of(self.metadata)
        self.classes: list[str] | None = self.metadata["classes"]
        self._ids = _open_array(self.path / "ids.npy", self._shape, _dtype(self.codebook_size))
        labels = _open_array(self.path / "labels.npy", self._shape[:1], np.int64)
        self.labels = torch.from_numpy(np.array(labels))

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.metadata["num_samples"], len(self.metadata["views"]), self.metadata["num_tokens"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_sequences(self) -> int:
        """N*R: what an epoch of a generator's training has. Sequence n is of record n // R, in its rank n % R."""
        return len(self) * self.num_ranks

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """cache[i, view] -> ids (K,) int64, label."""
        index, view = key
        return torch.from_numpy(self._ids[index, view].astype(np.int64)), int(self.labels[index])

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """ids (n,V,K) of records ``indices`` (n,)."""
        return self._ids[indices]

    def flat_ids(self) -> np.ndarray:
        """(N*V*K,), mapped: record by record, view by view."""
        return self._ids.reshape(-1)

    def view_for(self, seed: int, epoch: int, index: int) -> int:
        """The view of record ``index`` to train on: drawn again every epoch, the same for any workers or processes."""
        return CounterRandom(seed, epoch, index).below(self.num_views // self.num_ranks)

    def batch(
        self, indices: Sequence[int] | np.ndarray, seed: int, epochs: Sequence[int] | np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Of sequences ``indices`` (B,) in epochs (B,): ids (B,K) of the drawn view, labels (B,), both int64."""
        records, ranks = np.divmod(np.asarray(indices), self.num_ranks)
        views = np.array([self.view_for(seed, int(e), int(i)) for e, i in zip(epochs, records, strict=True)], np.int64)
        ids = torch.from_numpy(self._ids[records, views * self.num_ranks + ranks].astype(np.int64))  # (B,K)
        return ids, self.labels[torch.from_numpy(records)]

    def code_counts(self) -> list[Tensor]:
        """How often each code of each segment occurs in all views, (V,) int64 each."""
        parts = zip(self.code.segments, self.code.slices(), strict=True)
        return [count_codes(self._ids[..., place], segment.size) for segment, place in parts]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ids": None}  # a pickled memory map would be the whole file

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ids = _open_array(self.path / "ids.npy", self._shape, _dtype(self.codebook_size))


def _code_of(metadata: dict[str, Any]) -> Ids:
    """Version 0.1 wrote only how many tokens of how many codes there are."""
    if "code" in metadata:
        return code_from_dict(metadata["code"])
    tokens = metadata["num_tokens"]
    return Ids((Segment(tokens, metadata["codebook_size"], square_grid(tokens)),))


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
        self.metadata = _read_metadata(self.path)
        self._count = self.metadata["num_samples"]
        self._row = (len(self.metadata["views"]), self.metadata["num_tokens"])
        self._dtype = _dtype(self.metadata["codebook_size"])
        self._files = {}
        for name in ("ids.npy", "labels.npy", "progress.bin"):
            try:
                self._files[name] = os.open(self.path / name, os.O_RDWR)
            except OSError as error:
                raise DataError(f"cannot write {self.path / name}: {error.strerror}") from None
        labels = _open_array(self.path / "labels.npy", (self._count,), np.int64)
        self._starts = {"ids.npy": self.read_only_ids().offset, "labels.npy": labels.offset}

    def progress(self) -> np.ndarray:
        """(N,) uint8: TO_DO, DONE or REPLACED."""
        progress = np.fromfile(self.path / "progress.bin", np.uint8)
        if len(progress) != self._count:
            raise DataError(f"{self.path / 'progress.bin'} was cut: remove the folder and start again")
        return progress

    def read_only_ids(self) -> np.ndarray:
        """(N,V,K), mapped: what is written so far."""
        return _open_array(self.path / "ids.npy", (self._count, *self._row), self._dtype)

    def blocks_to_do(self, size: int) -> list[np.ndarray]:
        """Blocks [k * size, (k + 1) * size) of rows that are not all done.

        Blocks do not depend on what was done by whom, so every row is always computed in the same company
        and an interrupted cache ends with the bytes of an uninterrupted one.
        """
        done = self.progress() != TO_DO
        starts = range(0, self._count, size)
        return [np.arange(s, min(s + size, self._count)) for s in starts if not done[s : s + size].all()]

    def write(self, start: int, ids: np.ndarray, labels: np.ndarray, replaced: np.ndarray) -> None:
        """Rows from ``start`` on: ids (b,V,K), labels (b,), replaced (b,) bool. They are on the disk on return."""
        assert ids.shape[1:] == self._row and ids.max(initial=0) < self.metadata["codebook_size"]
        ids = np.ascontiguousarray(ids, self._dtype)
        rows = {"ids.npy": ids, "labels.npy": np.ascontiguousarray(labels, np.int64)}
        try:
            for name, array in rows.items():
                file = self._files[name]
                _write_all(file, array.tobytes(), self._starts[name] + start * array[:1].nbytes)
                os.fsync(file)
            marks = np.where(replaced, REPLACED, DONE).astype(np.uint8)
            _write_all(self._files["progress.bin"], marks.tobytes(), start)  # only once the rows are safe
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}; what was written before is intact") from None

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
        _write_metadata(self.path, {**self.metadata, **metadata, "replaced_rows": replaced, "complete": True})
        with contextlib.suppress(OSError):  # complete it is; a progress file left over does no harm
            (self.path / "progress.bin").unlink()

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])


def begin(path: str | Path, metadata: dict[str, Any]) -> bool:
    """Make an empty cache, or find the one to continue at ``path``.

    Args:
        metadata: the fields of ``IDENTITY``, "classes" and whatever else is worth keeping.

    Returns:
        False if the very cache is there and complete, else True.

    Raises:
        DataError: something else is there, or the disk has no room for the whole cache.
    """
    path, metadata = Path(path), {"version": VERSION, **metadata, "complete": False}
    if (path / "cache.json").is_file():
        found = _read_metadata(path)
        for key in IDENTITY:
            unknown = key == "precision" and metadata[key] is None  # imported; older imports say "fp32"
            if found.get(key) != metadata[key] and not unknown:
                raise DataError(
                    f"{path} holds a token cache with another {key} ({_short(found.get(key))}, "
                    f"not {_short(metadata[key])}): choose another folder"
                )
        return not found["complete"]
    count, row = metadata["num_samples"], (len(metadata["views"]), metadata["num_tokens"])
    try:
        path.mkdir(parents=True, exist_ok=True)
        if strangers := set(os.listdir(path)) - {"ids.npy", "labels.npy", "progress.bin", "cache.json.part"}:
            raise DataError(f"{path} is not empty (it has {min(strangers)}): choose another folder")
        for name, shape, dtype in (
            ("ids.npy", (count, *row), _dtype(metadata["codebook_size"])),
            ("labels.npy", (count,), np.int64),
        ):
            np.lib.format.open_memmap(path / name, "w+", dtype, shape).flush()
            _reserve(path / name)
        (path / "progress.bin").write_bytes(bytes(count))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
    _write_metadata(path, metadata)  # last: a folder without it is started again
    return True


# --------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------


def _dtype(codebook_size: int) -> type:
    return np.uint16 if codebook_size <= 2**16 else np.uint32


def _reserve(path: Path) -> None:
    """Claim the disk blocks of a sparse file now, so that a full disk shows before the work."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _write_all(file: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, position)
        view, position = view[written:], position + written


def _open_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if array.shape != shape or array.dtype != dtype:
        raise DataError(f"{path} holds {array.shape} {array.dtype}, its cache.json says {shape} {np.dtype(dtype)}")
    return array


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((path / "cache.json").read_text(encoding="utf-8"))
    except OSError as error:
        if path.name.endswith("_codes") or any(path.glob("*_codes")):
            raise DataError(f"{path} holds LlamaGen's code files: make a cache of them (vfmtok import-codes)") from None
        raise DataError(f"no token cache at {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"damaged {path / 'cache.json'}: {error}") from None
    missing = [
        key for key in (*IDENTITY, "classes", "complete") if not isinstance(metadata, dict) or key not in metadata
    ]
    if missing:
        raise DataError(f"{path / 'cache.json'} lacks '{missing[0]}'")
    if metadata["version"] != VERSION:
        raise DataError(f"{path} is a token cache of version {metadata['version']}; this program reads {VERSION}")
    return metadata


def _write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    try:
        with replacing(path / "cache.json") as part:
            part.write_text(json.dumps(metadata, indent=1), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path / 'cache.json'}: {error.strerror}") from None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
