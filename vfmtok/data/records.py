"""Records: one encoded image, its label and its name, in an LMDB folder.

Keys are "0", "1", ... and "num_samples" (the published layout's); ours adds "metadata" (JSON). The
count is written last, so a folder without "num_samples" is a dataset that was never finished.

A record is a flat binary block (little endian):

    magic "VFMR" | version u8 | 3 zero bytes | label i64 | name length u32 | image length u64
    name (UTF-8) | image (encoded file) | CRC-32 of everything before it u32

Records of the published layout are pickled dicts {"image": bytes, "label": int}. They are read
through an unpickler that can build nothing but built-in values, so reading never runs code.
"""

import hashlib
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import lmdb
import numpy as np

from vfmtok.data.published_records import unpickle_builtins
from vfmtok.errors import DataError

Layout = Literal["vfmtok", "published"]

_MAGIC = b"VFMR"
_VERSION = 1
_HEADER = struct.Struct("<4sB3xqIQ")
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Record:
    """One image of a dataset."""

    image: bytes  # the encoded file: JPEG, PNG, WebP, ...
    label: int
    name: str  # path relative to the source, unique in the dataset; "" where a foreign record has none


# --------------------------------------------------------------------------------------
# One record as bytes
# --------------------------------------------------------------------------------------


def encode_record(record: Record, layout: Layout = "vfmtok") -> bytes:
    """The bytes stored for a record; the published layout has no room for the name."""
    if layout == "published":
        return pickle.dumps({"image": record.image, "label": record.label}, protocol=4)
    name = record.name.encode("utf-8", "surrogateescape")  # file names need not be valid UTF-8
    body = _HEADER.pack(_MAGIC, _VERSION, record.label, len(name), len(record.image)) + name + record.image
    return body + _CRC.pack(zlib.crc32(body))


def decode_record(blob: bytes) -> Record:
    """A stored record of either layout.

    Raises:
        DataError: the bytes are damaged, of a newer version, no record, or a pickle that asks for
            anything but built-in values.
    """
    if blob[:4] != _MAGIC:
        return _decode_published(blob)
    if len(blob) < _HEADER.size + _CRC.size:
        raise DataError(f"damaged record: {len(blob)} bytes are too few")
    _, version, label, name_size, image_size = _HEADER.unpack_from(blob)
    if version != _VERSION:
        raise DataError(f"record version {version}; this program reads version {_VERSION}")
    name_end = _HEADER.size + name_size
    if len(blob) != name_end + image_size + _CRC.size:
        raise DataError(f"damaged record: {len(blob)} bytes where its header says {name_end + image_size + _CRC.size}")
    if zlib.crc32(memoryview(blob)[: -_CRC.size]) != _CRC.unpack_from(blob, len(blob) - _CRC.size)[0]:
        raise DataError("damaged record: its checksum does not match")
    name = blob[_HEADER.size : name_end].decode("utf-8", "surrogateescape")
    return Record(blob[name_end : -_CRC.size], label, name)


def _decode_published(blob: bytes) -> Record:
    fields = unpickle_builtins(blob)
    image, label = (fields.get("image"), fields.get("label")) if isinstance(fields, dict) else (None, None)
    if type(image) is not bytes or type(label) is not int:
        raise DataError("not a record: expected a dict with 'image' bytes and a 'label' int")
    return Record(image, label, "")


# --------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------


class RecordDataset:
    """The records of one LMDB folder, of our layout or the published one, by index.

    It can be pickled, forked and spawned: every process opens the environment for itself when it
    first reads. Keys are computed, never listed.

    Attributes:
        path: the LMDB folder.
        metadata: what prepare wrote (empty for a foreign dataset).
        classes: class names by label, or None where the dataset does not say.
        fingerprint: hex; equal for equal records in equal order.
        shard_sizes: None: records are read in any order at the same cost (see ``shards.ShardDataset``).
        notes: lines for people; none.
    """

    shard_sizes: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, path: str | Path):
        """Raises DataError if there is no complete dataset at ``path``."""
        self.path = Path(path)
        self._environment, self._pid = None, None
        if self.path.is_dir() and (self.path / "train_lmdb").is_dir():
            raise DataError(f"{path} is a prepared folder: name {self.path / 'train_lmdb'} or its val_lmdb")
        count = self._get("num_samples")
        if count is None:
            self._environment = None  # closes it: a writer in this process may need it
            raise DataError(f"dataset {path} is not complete: run the `vfmtok prepare` that made it again")
        self._count = _decode_count(count, self.path)
        try:
            self.metadata: dict[str, Any] = json.loads(self._get("metadata") or b"{}")
        except ValueError as error:
            raise DataError(f"damaged metadata in {path}: {error}") from None
        if not isinstance(self.metadata, dict):
            raise DataError(f"damaged metadata in {path}: not a JSON object")
        self.classes: list[str] | None = self.metadata.get("classes")
        self.fingerprint: str = self.metadata.get("fingerprint") or self._sampled_fingerprint()

    def __len__(self) -> int:
        return self._count

    def class_name(self, label: int) -> str:
        """What to call a label in texts and pictures; "label 7" where it has no name."""
        return self.classes[label] if self.classes and 0 <= label < len(self.classes) else f"label {label}"

    def __getitem__(self, index: int) -> Record:
        """Record ``index``. Raises IndexError out of range and DataError for a damaged record."""
        if not -self._count <= index < self._count:
            raise IndexError(f"record {index} of {self._count} in {self.path}")
        index = int(index) % self._count
        blob = self._get(str(index))
        if blob is None:
            raise DataError(f"record {index} is missing from {self.path}")
        try:
            record = decode_record(blob)
        except DataError as error:
            raise DataError(f"record {index} of {self.path}: {error}") from None
        if not record.name:
            name = self._get(f"name/{index}")
            record = replace(record, name=name.decode("utf-8", "surrogateescape") if name else "")
        return record

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment": None, "_pid": None}

    def _get(self, key: str) -> bytes | None:
        if self._pid != os.getpid():
            self._environment, self._pid = _open_for_reading(self.path), os.getpid()
        try:
            with self._environment.begin() as transaction:
                return transaction.get(key.encode())
        except lmdb.Error as error:
            raise DataError(f"cannot read {self.path}: {error}") from None

    def _sampled_fingerprint(self) -> str:
        """For datasets that bring none: a hash of the count and of 64 records spread over them."""
        digest = hashlib.sha256(str(self._count).encode())
        for i in range(min(64, self._count)):
            index = i * self._count // min(64, self._count)
            digest.update(hashlib.sha256(self._get(str(index)) or b"").digest())
        return digest.hexdigest()


def _decode_count(blob: bytes, path: Path) -> int:
    """The count: ASCII digits or a pickled int."""
    count = int(blob) if blob.isdigit() else unpickle_builtins(blob)
    if isinstance(count, str | bytes) and count.isdigit():
        count = int(count)
    if type(count) is not int or count < 0:
        raise DataError(f"{path}: 'num_samples' holds no count")
    return count


# LMDB allows one environment per file and process, so datasets of the same file share theirs; the last
# one to go closes it. A forked child must close what it inherited before it can open the file itself.
_UNWRITTEN_PAGES = 64

_environments: WeakValueDictionary[tuple[int, int], lmdb.Environment] = WeakValueDictionary()  # by (device, inode)


def _close_inherited() -> None:
    for environment in list(_environments.values()):
        environment.close()
    _environments.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def _open_for_reading(path: Path) -> lmdb.Environment:
    file = path / "data.mdb" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"no dataset at {path}" + (" (no data.mdb in it)" if path.is_dir() else ""))
    key = (file.stat().st_dev, file.stat().st_ino)
    environment = _environments.get(key)
    try:
        if environment is None:
            environment = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
            # LMDB may leave the last pages it counted unwritten: only a longer tail is a cut file.
            needed = (environment.info()["last_pgno"] + 1 - _UNWRITTEN_PAGES) * environment.stat()["psize"]
            if file.stat().st_size < needed:  # reading beyond the end of a mapped file kills the process
                environment.close()
                raise DataError(f"{path} is cut short: {file.stat().st_size} of {needed} bytes or more, copy it again")
    except lmdb.Error as error:
        raise DataError(f"{path} is no LMDB dataset, or being written: {error}") from None
    _environments[key] = environment
    return environment


# --------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------


class RecordWriter(AbstractContextManager):
    """Appends records in transactions that carry the progress with them.

    Whatever stops the writer, ``progress`` on disk fits the records on disk.

    Attributes:
        progress: of the committed records: "position" (source entries consumed), "count" (records
            written), "fingerprint", "class_counts" and "skipped" (a count).
        job: what the caller passed as ``job`` when the dataset was begun.
    """

    def __init__(self, path: str | Path, layout: Layout = "vfmtok", job: Any = None, map_size: int = 1 << 26):
        """Begin or continue the dataset at ``path``. Raises DataError if it is complete or can't be written."""
        self.path, self.layout = Path(path), layout
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._environment = lmdb.open(str(self.path), map_size=map_size, readahead=False)
            with self._environment.begin() as transaction:
                complete = transaction.get(b"num_samples") is not None
                self._stored = transaction.get(b"progress")
                stored_job = transaction.get(b"job")
        except (OSError, lmdb.Error) as error:
            raise DataError(f"cannot write {path}: {error}") from None
        if complete:
            self.close()
            raise DataError(f"{path} already holds a complete dataset")
        empty = {"position": 0, "count": 0, "fingerprint": "", "class_counts": {}, "skipped": 0}
        self.progress: dict[str, Any] = json.loads(self._stored) if self._stored else empty
        self.job = json.loads(stored_job) if stored_job else job

    def append(self, records: Iterable[Record], position: int, skipped: Iterable[dict[str, str]] = ()) -> None:
        """One transaction: more records and skipped files, after which ``position`` entries are consumed.

        Raises:
            DataError: the disk is full or another process writes too; nothing of this call is kept.
        """
        progress = {**self.progress, "position": position, "class_counts": dict(self.progress["class_counts"])}
        items: dict[str, bytes] = {}
        for record in records:
            canonical = encode_record(record)
            index = progress["count"]
            items[str(index)] = canonical if self.layout == "vfmtok" else encode_record(record, self.layout)
            if self.layout == "published" and record.name:
                items[f"name/{index}"] = record.name.encode("utf-8", "surrogateescape")
            chain = bytes.fromhex(progress["fingerprint"]) + hashlib.sha256(canonical).digest()
            progress["fingerprint"] = hashlib.sha256(chain).hexdigest()
            progress["class_counts"][str(record.label)] = progress["class_counts"].get(str(record.label), 0) + 1
            progress["count"] += 1
        for entry in skipped:
            items[f"skipped/{progress['skipped']}"] = json.dumps(entry).encode()
            progress["skipped"] += 1
        stored = json.dumps(progress).encode()
        self._commit({**items, "progress": stored, "job": json.dumps(self.job).encode()})
        self.progress, self._stored = progress, stored

    def finish(self, classes: list[str] | None = None, **metadata: Any) -> None:
        """Write the metadata and the count: from here on the dataset can be read."""
        progress = self.progress
        found = {key: progress[key] for key in ("count", "fingerprint", "class_counts", "skipped")}
        document = {"layout": self.layout, "classes": classes, **found, **metadata}
        self._commit({"metadata": json.dumps(document).encode(), "num_samples": str(progress["count"]).encode()})

    def skipped(self) -> list[dict[str, str]]:
        """Every skipped file so far: its name and the reason."""
        with self._environment.begin() as transaction:
            return [json.loads(transaction.get(f"skipped/{i}".encode())) for i in range(self.progress["skipped"])]

    def close(self, *_: object) -> None:
        self._environment.close()

    __exit__ = close

    def _commit(self, items: dict[str, bytes]) -> None:
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    if transaction.get(b"progress") != self._stored or transaction.get(b"num_samples") is not None:
                        raise DataError(f"another process is writing {self.path}")
                    for key, value in items.items():
                        transaction.put(key.encode(), value)
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.Error as error:  # LMDB calls a write cut short by a full disk "Input/output error"
                full = shutil.disk_usage(self.path).free < sum(map(len, items.values()))
                reason = "no space left on the disk" if full else error
                raise DataError(f"cannot write {self.path}: {reason}; what was written before is intact") from None


def write_records(
    path: str | Path, records: Iterable[Record], layout: Layout = "vfmtok", classes: list[str] | None = None
) -> None:
    """Write a whole dataset of few or many records. Raises DataError if there is one already."""
    with RecordWriter(path, layout) as writer:
        if writer.progress["count"]:
            raise DataError(f"{path} holds an unfinished dataset: delete it first")
        remaining = iter(records)
        while batch := list(islice(remaining, 256)):
            writer.append(batch, writer.progress["position"] + len(batch))
        writer.finish(classes)
