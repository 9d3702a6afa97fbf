"""The index of a WebDataset shard: where each sample's image lies in the tar, its label, its short side and its name.

With it a sample is read by its number, without reading what lies before it, so shards are trained on in the same order
as LMDB records, and resumed at any sample. It lies beside the shard as ``X.tar.index``, where the folder can be written
to, else in the user's cache; copied along with the shard, it is used wherever the shard goes. Layout (little endian):

    magic "VFMI" | version u32 | length of the header u64 | header (JSON) | rows (``ROW``) | names (UTF-8)

It belongs to a shard of its size (and, for local files, its modification time); otherwise it is made again.
"""

import hashlib
import json
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vfmtok.data import image_files
from vfmtok.errors import DataError
from vfmtok.sources import files
from vfmtok.sources.archives import COMPRESSED, walk_tar
from vfmtok.sources.files import Found
from vfmtok.sources.scratch import Scratch
from vfmtok.sources.webdataset import Keys, Shard, read_shard

MAGIC, VERSION = b"VFMI", 1
PREFIX = struct.Struct("<4sIQ")
ROW = np.dtype([
    ("offset", "<u8"), ("size", "<u8"),  # of the image's bytes in the tar
    ("label", "<i8"),  # the number, or the place in the header's list of label texts; -1 without labels
    ("side", "<u4"),  # the short side in pixels; 0: its header can't be read
    ("name_size", "<u4"), ("name", "<u8"),  # where the name lies among the names
])  # fmt: skip
HEAD = 1 << 16  # bytes of an image that nearly always hold its size


@dataclass(frozen=True)
class ShardHeader:
    """What is known of a shard without its rows."""

    count: int
    size: int  # of the shard, bytes
    mtime_ns: int
    labels_from: str | None  # "cls", "json", ...; None: no labels
    texts: list[str] | None  # labels that are text; None: labels are numbers
    labels: tuple[int, int]  # the least and the largest number
    names: dict[int, str]  # class names that came beside numbers
    left_out: dict[str, int]  # what of the shard is not used -> how often
    body: int  # bytes of rows and names
    digest: str  # SHA-256 of them
    rows: int  # where the rows begin in the file

    @property
    def text_start(self) -> int:
        return self.rows + self.count * ROW.itemsize


def build(shard: Path, name: str, keys: Keys, labelled: bool = True) -> bytes:
    """The index of a shard as bytes.

    Args:
        name: what messages call the shard.
        keys: which members hold image and label, where the rules of ``sources/webdataset.py`` leave it open.
        labelled: False: labels do not matter, and any tar with images will do.

    Raises:
        DataError: it is no plain tar of samples, or what is image or label is ambiguous.
    """
    try:
        state = shard.stat()
        with open(shard, "rb") as file:
            start = file.read(6)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror}") from None
    if any(start.startswith(magic) for magic in COMPRESSED):
        raise DataError(f"{name} is compressed: unpack it to a plain .tar, or `vfmtok prepare` the shards")
    with Scratch(shard.parent) as scratch:
        members = walk_tar(shard, scratch)
    found = read_shard(name, members, keys, labelled)
    if found is None:
        found = _images_alone(name, members, labelled)
    images = [image for image in found.images if image.place[0] == "tar"]
    if lost := len(found.images) - len(images):
        found.left_out["links that lead nowhere, and sparse files"] += lost
    rows, texts, joined = _rows(shard, images, found.labels_from)
    numbers = rows["label"][rows["label"] >= 0] if texts is not None or found.labels_from is None else rows["label"]
    body = rows.tobytes() + joined
    header = {
        "count": len(rows), "size": state.st_size, "mtime_ns": state.st_mtime_ns,
        "labels_from": found.labels_from, "texts": texts,
        "labels": [int(numbers.min()), int(numbers.max())] if len(numbers) else [0, 0],
        "names": {str(number): text for number, text in found.names.items()}, "left_out": dict(found.left_out),
        "body": len(body),
        "digest": hashlib.sha256(body).hexdigest(),
    }  # fmt: skip
    encoded = json.dumps(header).encode()
    return PREFIX.pack(MAGIC, VERSION, len(encoded)) + encoded + body


def _images_alone(name: str, members: list[Found], labelled: bool) -> Shard:
    """A tar of images without labels or captions. Raises DataError where labels are wanted."""
    if labelled:
        raise DataError(
            f"{name} holds no samples with labels or captions: `vfmtok prepare` reads folders in tars; to train a "
            "tokenizer on its images without labels say data.label_key=none"
        )
    return Shard([member for member in members if files.is_image(member)], None)


def _rows(shard: Path, images: list[Found], labels_from: str | None) -> tuple[np.ndarray, list[str] | None, bytes]:
    """(N,) ROW, the label texts (None: numbers), and all names joined. Raises DataError."""
    texts: list[str] | None = None
    if labels_from is not None and any(isinstance(image.label, str) for image in images):
        texts = sorted({str(image.label) for image in images})
        if any(not isinstance(image.label, str) for image in images):
            raise DataError(f"{shard}: some labels are numbers and some text")
    place_of = {text: place for place, text in enumerate(texts or ())}
    rows, names, start = np.zeros(len(images), ROW), [], 0
    with open(shard, "rb") as file:
        for row, image in zip(rows, images, strict=True):
            _, _, offset, size = image.place
            encoded = image.path.encode("utf-8", "surrogateescape")
            label = place_of.get(image.label, image.label) if labels_from is not None else -1
            row["offset"], row["size"], row["label"] = offset, size, label
            row["side"] = _short_side(file.fileno(), offset, size)
            row["name"], row["name_size"] = start, len(encoded)
            names.append(encoded)
            start += len(encoded)
    return rows, texts, b"".join(names)


def _short_side(file: int, offset: int, size: int) -> int:
    """Of the image at this place, 0 if its header can't be read."""
    for length in (HEAD, size):
        try:
            return min(image_files.open_image(os.pread(file, min(length, size), offset), decode=False).size)
        except image_files.NotAnImage:
            if length >= size:
                break
    return 0


# --------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------


def read_header(path: Path) -> ShardHeader | None:
    """The header of an index file; None: there is none, or it is damaged or of another version."""
    try:
        with open(path, "rb") as file:
            magic, version, length = PREFIX.unpack(file.read(PREFIX.size))
            if magic != MAGIC or version != VERSION or length > os.fstat(file.fileno()).st_size:
                return None
            tree: dict[str, Any] = json.loads(file.read(length))
            names = {int(number): text for number, text in tree.pop("names").items()}
            header = ShardHeader(**tree | {"labels": tuple(tree["labels"]), "names": names, "rows": file.tell()})
            whole = os.fstat(file.fileno()).st_size == header.rows + header.body
            return header if whole else None
    except (OSError, ValueError, struct.error, KeyError, TypeError):
        return None


def read_rows(path: Path, header: ShardHeader) -> np.ndarray:
    """(N,) ROW of a whole shard. Raises DataError."""
    try:
        rows = np.fromfile(path, ROW, header.count, offset=header.rows)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if len(rows) != header.count:
        raise DataError(f"{path} was cut: remove it, and it will be made again")
    return rows


def left_out_of(headers: list[ShardHeader]) -> Counter[str]:
    return sum((Counter(header.left_out) for header in headers), Counter())
