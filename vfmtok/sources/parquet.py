"""Parquet and Arrow files of images, as Hugging Face writes them: a column of images and one of labels.

* Images: the column ``image``; else the one that the metadata of `datasets` calls an Image, or that holds bytes.
* Labels: the column ``label``; else the one that the metadata calls a ClassLabel, or that has a usual name. Class names
  are the metadata's. What is ambiguous is decided by ``--image-key`` and ``--label-key``.
"""

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfmtok.errors import DataError
from vfmtok.sources.arrow_files import SUFFIX, ArrowFile
from vfmtok.sources.files import CorruptFile, Found
from vfmtok.sources.webdataset import NAMED, NO_KEYS, NUMBERED, Keys, as_label

_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_bytes", "bytes", "content")
_LABELS = ("label", "labels", "fine_label", *NUMBERED[1:], *NAMED)


@dataclass
class Table:
    """What the columns of one file are."""

    path: Path
    image: str
    label: str | None  # None: the images have no labels
    names: list[str] | None  # of the classes, by label
    unused: list[str]  # other columns that hold images, or could be the label
    opened: Any

    def rows(self, labelled: bool = True) -> Iterator[Found]:
        """The images in their order, since row groups are read whole. Only paths and labels are read here.

        A row without a path gets its number as name, without an extension: the format is not known yet.
        """
        shard = f"{self.path.name}:{self.path.stat().st_size}"
        fields = _fields(self.opened.schema_arrow.field(self.image).type)
        content = f"{self.image}.bytes" if fields else self.image
        label_of = self.label if labelled else None
        path_of = f"{self.image}.path" if "path" in fields else None
        key_of = "__key__" if "__key__" in self.opened.schema_arrow.names else None  # webdataset's, as a table
        columns = [column for column in (label_of, path_of, key_of) if column]
        number = 0
        for group in range(self.opened.num_row_groups):
            count = self.opened.metadata.row_group(group).num_rows
            table = _read(self.path, self.opened, group, columns) if columns else None
            labels, paths, keys = (
                table.column(column.split(".")[0]).to_pylist() if column else [None] * count
                for column in (label_of, path_of, key_of)
            )
            for row, (label, path, key) in enumerate(zip(labels, paths, keys, strict=True)):
                label = as_label(label, f"{self.path}: row {number}")
                place = ("parquet", str(self.path), group, row, content)
                name = (path and path["path"]) or key or f"{self.path.stem}-{number:08d}"  # no path: no image, maybe
                yield Found(name, 0, shard, place, label)
                number += 1


def open_table(file: Path, keys: Keys = NO_KEYS) -> Table:
    """Which columns of a parquet file are images and labels.

    Raises:
        DataError: the file can't be read, it holds no images, or a choice is left to the user.
    """
    opened = _open(file)
    schema = opened.schema_arrow
    features = _features(schema.metadata)
    images = [name for name in schema.names if _holds_images(schema.field(name).type, name, features)]
    image = _choose(file, "--image-key", keys.image, "image", images, schema.names)
    if image is None:
        raise DataError(f"{file} has no column of images, only {', '.join(schema.names)}: choose one by --image-key")
    if not _is_readable(schema.field(image).type):
        raise DataError(f"{file}: column '{image}' must hold bytes, or a struct with 'bytes'")
    labels = [name for name in schema.names if _type_of(features, name) == "ClassLabel"]
    labels = labels or [name for name in schema.names if name in _LABELS and name != image]
    label = _choose(file, "--label-key", keys.label, "label", labels, schema.names)
    names = features.get(label, {}).get("names") if label else None
    names = [str(name) for name in names] if isinstance(names, list) else None
    unused = [name for name in (*images, *labels) if name not in (image, label)]
    return Table(file, image, label, names, unused, opened)


def is_installed() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def holds_images(file: Path) -> bool:
    """Whether a parquet file is one of images, and not of what is known about them. Raises DataError."""
    schema = _open(file).schema_arrow
    features = _features(schema.metadata)
    return any(_holds_images(schema.field(name).type, name, features) for name in schema.names)


def _choose(file: Path, flag: str, chosen: str | None, usual: str, found: list[str], columns: list[str]) -> str | None:
    if chosen is not None:
        if chosen not in columns:
            raise DataError(f"{file} has no column '{chosen}' ({flag}), only {', '.join(columns)}")
        return chosen
    if usual in found or (usual in columns and usual == "label"):
        return usual
    if len(found) > 1:
        raise DataError(f"{file} has the columns {', '.join(found)}: choose one by {flag}")
    return found[0] if found else None


def _fields(kind: Any) -> set[str]:
    """The names of a struct's fields; of anything else nothing."""
    import pyarrow

    return {kind.field(i).name for i in range(kind.num_fields)} if pyarrow.types.is_struct(kind) else set()


def _is_readable(kind: Any) -> bool:
    import pyarrow

    return "bytes" in _fields(kind) or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _holds_images(kind: Any, name: str, features: dict) -> bool:
    if _type_of(features, name) == "Image" or "bytes" in _fields(kind):
        return _type_of(features, name) in (None, "Image")
    return name in _IMAGES and _is_readable(kind)


def _type_of(features: dict, name: str) -> str | None:
    feature = features.get(name)
    return feature.get("_type") if isinstance(feature, dict) else None


def read_row(file: str, row_group: int, row: int, column: str) -> bytes:
    """The image bytes of one row. Its row group, and no other, stays in memory for the rows that follow."""
    state = os.stat(file)
    content = _image_column(file, row_group, column, state.st_size, state.st_mtime_ns)[row].as_py()
    if content is None:
        raise CorruptFile("the row holds no bytes")
    return content


_kept: dict[tuple, Any] = {}  # at most one column: row groups of images are hundreds of megabytes


def _image_column(file: str, row_group: int, name: str, size: int, mtime: int) -> Any:
    """``size`` and ``mtime`` tell a file from one that has replaced it."""
    import pyarrow.compute

    key = (file, row_group, name, size, mtime)
    if key not in _kept:
        _kept.clear()  # before reading the next
        column, _, field = name.partition(".")
        found = _read(Path(file), _open(Path(file)), row_group, [name]).column(column)
        _kept[key] = pyarrow.compute.struct_field(found, field) if field else found
    return _kept[key]


def _open(file: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"reading {file} needs pyarrow: pip install 'vfmtok[parquet]'") from None
    try:
        return ArrowFile(file) if file.suffix.lower() == SUFFIX else pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {file}: {str(error).splitlines()[0]}") from None


def _read(file: Path, opened: Any, group: int, columns: list[str]) -> Any:
    import pyarrow

    try:
        return opened.read_row_group(group, columns=columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read row group {group} of {file}: {str(error).splitlines()[0]}") from None


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """``info.features`` of the "huggingface" schema metadata: what `datasets` knows of each column."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}
