"""Training straight from WebDataset shards: a data set with the interface of ``records.RecordDataset``.

Local shards are read by index (``shard_index.py``), so order, resuming and replacement of bad records are those of an
LMDB. Remote ones are fetched whole into a cache of a few shards (``remote_shards.py``); the order then keeps samples of
a shard together (``SampleOrder``, ``shard_sizes``), and resumes at any sample just as well.

Memory does not grow with the number of images, but for one bit each where ``min_size`` leaves some out.
"""

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from vfmtok.data import shard_index
from vfmtok.data.ordered_pool import default_workers, ordered_results
from vfmtok.data.records import Record
from vfmtok.data.shard_index import ROW, ShardHeader
from vfmtok.errors import DataError
from vfmtok.files import replacing
from vfmtok.sources import classes as class_rules
from vfmtok.sources.webdataset import Keys

OPEN_SHARDS = 64  # files that a process keeps open
MANY_SHARDS = 8  # without an index, from which other processes help to make them
PER_SHARD = 10_000  # samples, about


class ShardOptions(NamedTuple):
    """What a recipe says of shards (section ``data``)."""

    min_size: int | None = None  # images with a shorter short side are left out, px
    image_key: str | None = None  # the member that is the image, where several could be
    label_key: str | None = None  # the member or .json key that is the label; "none": labels do not matter

    @property
    def keys(self) -> Keys:
        return Keys(self.image_key, None if self.label_key == "none" else self.label_key)

    @property
    def labelled(self) -> bool:
        return self.label_key != "none"


NO_OPTIONS = ShardOptions()


class Place(Protocol):
    """Where a shard is."""

    name: str  # of the shard alone, without folders

    def find_index(self, options: ShardOptions) -> Path | None:
        """Its index, if it is there and fits. Raises DataError if the shard can't be read."""

    def make_index(self, options: ShardOptions) -> Path:
        """Its index, made or fetched. Raises DataError."""

    def file(self) -> Path:
        """The shard on a local disk, fetched if need be. Raises DataError."""


@dataclass(frozen=True)
class LocalShard:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def file(self) -> Path:
        return self.path

    def find_index(self, options: ShardOptions) -> Path | None:
        state = _stat(self.path)
        for path in self._candidates(options):
            header = shard_index.read_header(path)
            if header is not None and (header.size, header.mtime_ns) == (state.st_size, state.st_mtime_ns):
                return path
        return None

    def make_index(self, options: ShardOptions) -> Path:
        content = shard_index.build(self.path, str(self.path), options.keys, options.labelled)
        return write_index(self._candidates(options), content)

    def _candidates(self, options: ShardOptions) -> list[Path]:
        """Beside the shard, and in the cache under a name that tells it from shards elsewhere."""
        suffix = index_suffix(options)
        whole = hashlib.sha256(os.fsencode(self.path.absolute())).hexdigest()[:16]
        return [self.path.parent / f"{self.name}{suffix}", cache_folder() / f"{whole}-{self.name}{suffix}"]


def index_suffix(options: ShardOptions) -> str:
    """ ".index"; with other keys than the usual ones, a name of its own."""
    if options.keys == Keys() and options.labelled:
        return ".index"
    return f".{hashlib.sha256(repr((*options.keys, options.labelled)).encode()).hexdigest()[:8]}.index"


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vfmtok/shards"


def write_index(candidates: Sequence[Path], content: bytes) -> Path:
    """Write an index to the first of the places that takes it. Raises DataError."""
    for path in candidates:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, sync=False, shared=True) as part:
                part.write_bytes(content)
            return path
        except OSError as error:
            reason = error.strerror
    raise DataError(f"cannot write {candidates[-1]}: {reason} (the index of a shard; set XDG_CACHE_HOME)")


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


class ShardDataset:
    """The samples of shards by index: shard after shard, each in the order of its tar.

    It can be pickled, forked and spawned, like ``RecordDataset``.

    Attributes:
        path: what the user named.
        metadata: ``classes``, and what is left out of the shards, counted.
        classes: class names by label; None where the shards have no labels (all are 0 then).
        fingerprint: hex; of the shards' names, sizes and indexes, and of ``min_size``.
        shard_sizes: (n,) samples of each shard where they are to be read shard by shard, else None.
        notes: lines for people.
    """

    def __init__(self, path: str | Path, places: Sequence[Place], options: ShardOptions = NO_OPTIONS):
        """Raises DataError: a shard can't be read, or what is image or label in it is ambiguous."""
        self.path, self._places = Path(path), list(places)
        indexes = _all_indexes(self._places, options, str(path))
        self._indexes, headers = indexes, [_header(index) for index in indexes]
        self._text_starts = [header.text_start for header in headers]
        self._row_starts = [header.rows for header in headers]
        self._sizes = [header.size for header in headers]
        self.classes, self._labels = _classes(headers, self._places)
        kept, self._kept, too_small = _filter(indexes, headers, options.min_size)
        self._ends = np.cumsum(kept)
        self.shard_sizes: np.ndarray | None = kept if any(not isinstance(p, LocalShard) for p in places) else None
        left_out = shard_index.left_out_of(headers)
        self.metadata: dict[str, Any] = {"classes": self.classes, "left_out": dict(left_out), "too_small": too_small}
        self.fingerprint = _fingerprint(self._places, headers, options.min_size)
        self.notes = _notes(self, headers, left_out, options.min_size)
        self._open: OrderedDict[int, tuple[int, int]] = OrderedDict()  # shard -> tar and index, file descriptors
        self._pid = os.getpid()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def class_name(self, label: int) -> str:
        return self.classes[label] if self.classes and 0 <= label < len(self.classes) else f"label {label}"

    def __getitem__(self, index: int) -> Record:
        """Record ``index``. Raises IndexError out of range and DataError if it can't be read."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        index = int(index) % len(self)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        place = index - (int(self._ends[shard - 1]) if shard else 0)
        kept = self._kept[shard]
        if kept is not None:
            place = int(np.flatnonzero(np.unpackbits(kept))[place])
        name = self._places[shard].name
        try:
            tar, rows = self._descriptors(shard)
            row = np.frombuffer(os.pread(rows, ROW.itemsize, self._row_starts[shard] + place * ROW.itemsize), ROW)[0]
            path = os.pread(rows, int(row["name_size"]), self._text_starts[shard] + int(row["name"]))
            image = _read_all(tar, int(row["size"]), int(row["offset"]))
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"record {index} of {self.path}: cannot read {name}: {error}") from None
        label = self._labels[shard][row["label"]] if self._labels[shard] is not None else max(int(row["label"]), 0)
        return Record(image, int(label), f"{name.removesuffix('.tar')}/{path.decode('utf-8', 'surrogateescape')}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_pid": None}

    def _descriptors(self, shard: int) -> tuple[int, int]:
        """The opened tar and index of a shard. Raises OSError and DataError."""
        if self._pid != os.getpid():  # a fork: reads name their place, but closing is each process's own
            self._open, self._pid = OrderedDict(), os.getpid()
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        tar = os.open(self._places[shard].file(), os.O_RDONLY)
        if os.fstat(tar).st_size != self._sizes[shard]:
            os.close(tar)
            raise DataError(f"{self._places[shard].name} has changed since the run began")
        try:
            self._open[shard] = tar, os.open(self._indexes[shard], os.O_RDONLY)
        except OSError:
            os.close(tar)
            raise
        while len(self._open) > OPEN_SHARDS:
            for descriptor in self._open.popitem(last=False)[1]:
                os.close(descriptor)
        return self._open[shard]

    def __del__(self) -> None:
        if self.__dict__.get("_pid") == os.getpid():
            for descriptors in self._open.values():
                for descriptor in descriptors:
                    os.close(descriptor)


def _read_all(file: int, size: int, offset: int) -> bytes:
    content = os.pread(file, size, offset)
    while len(content) < size:  # one read gives 2 GiB at most
        more = os.pread(file, size - len(content), offset + len(content))
        if not more:
            raise ValueError("it was cut")
        content += more
    return content


def _header(index: Path) -> ShardHeader:
    header = shard_index.read_header(index)
    if header is None:
        raise DataError(f"{index} is damaged: remove it, and it will be made again")
    return header


def _all_indexes(places: list[Place], options: ShardOptions, what: str) -> list[Path]:
    """Made in parallel where many are missing: one tar is walked by one process."""
    found = [place.find_index(options) for place in places]
    missing = [number for number, index in enumerate(found) if index is None]
    workers = default_workers(PER_SHARD * len(missing)) if len(missing) >= MANY_SHARDS else 0
    made = ordered_results(partial(_make_index, options), [places[number] for number in missing], workers)
    bar = tqdm(made, f"index of {what}", len(missing), unit=" shards", delay=2)
    for number, index in zip(missing, bar, strict=True):
        found[number] = index
    return found


def _make_index(options: ShardOptions, place: Place) -> Path:
    return place.find_index(options) or place.make_index(options)  # another process may have made it meanwhile


def _classes(headers: list[ShardHeader], places: list[Place]) -> tuple[list[str] | None, list[np.ndarray | None]]:
    """Class names by label, by the rules of ``prepare``; and per shard the labels of its texts (None: numbers)."""
    without = next((i for i, header in enumerate(headers) if header.labels_from is None and header.count), None)
    labelled = [header for header in headers if header.labels_from is not None and header.count]
    if without is not None and labelled:
        raise DataError(f"{places[without].name} has no labels, and other shards do: data.label_key=none uses none")
    if not labelled:
        return None, [None] * len(headers)
    found: set[int | str] = set()
    for header in labelled:
        found |= set(header.texts) if header.texts is not None else set(header.labels)
    names = class_rules.complete_names(item for header in labelled for item in header.names.items())
    classes, label_of = class_rules.number(found, names, class_rules.Rules(None))
    return classes, [
        None if header.texts is None else np.array([label_of[text] for text in header.texts], np.int64)
        for header in headers
    ]


def _filter(
    indexes: list[Path], headers: list[ShardHeader], min_size: int | None
) -> tuple[np.ndarray, list[np.ndarray | None], int]:
    """Samples that are kept of each shard (n,), as bits where not all are, and how many are too small."""
    counts = np.array([header.count for header in headers], np.int64)
    if min_size is None:
        return counts, [None] * len(headers), 0
    bits: list[np.ndarray | None] = []
    kept = counts.copy()
    for number, (index, header) in enumerate(zip(indexes, headers, strict=True)):
        large = shard_index.read_rows(index, header)["side"] >= min_size
        kept[number] = large.sum()
        bits.append(None if large.all() else np.packbits(large))
    return kept, bits, int((counts - kept).sum())


def _fingerprint(places: list[Place], headers: list[ShardHeader], min_size: int | None) -> str:
    digest = hashlib.sha256(f"shards {min_size}".encode())
    for place, header in zip(places, headers, strict=True):
        digest.update(f"\n{place.name}\t{header.size}\t{header.digest}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _notes(
    dataset: ShardDataset, headers: list[ShardHeader], left_out: Counter[str], min_size: int | None
) -> list[str]:
    total = sum(header.count for header in headers)
    labels = f"{len(dataset.classes)} classes" if dataset.classes is not None else "no labels"
    notes = [f"{dataset.path}: {len(headers):,} shards of {total:,} images, {labels}"]
    if left_out:
        notes.append("left out of the shards: " + ", ".join(f"{n:,} {what}" for what, n in left_out.most_common(8)))
    if min_size is not None:
        small = dataset.metadata["too_small"]
        notes.append(f"{small:,} of {total:,} images have a short side below {min_size} px (data.min_size): left out")
    return notes
