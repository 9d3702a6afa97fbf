"""Parquet files of images, as Hugging Face writes them: ``image`` (a struct with ``bytes`` and perhaps
``path``) and ``label``."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vfmtok.errors import DataError
from vfmtok.sources.files import CorruptFile, Found


def walk_parquet(file: Path) -> tuple[list[str] | None, Iterator[Found]]:
    """The class names the file's Hugging Face metadata holds (or None), and its rows as files.

    Only paths and labels are read here. A row without a path gets its number as name, without an
    extension: the format is not known yet. Rows keep their order, since row groups are read whole.
    """
    opened = _open(file)
    schema = opened.schema_arrow
    if not {"image", "label"} <= set(schema.names):
        raise DataError(f"{file} has columns {', '.join(schema.names)}; 'image' and 'label' are needed")
    children = {schema.field("image").type.field(i).name for i in range(schema.field("image").type.num_fields)}
    if "bytes" not in children:
        raise DataError(f"{file}: column 'image' must be a struct with 'bytes'")
    return _class_names(schema.metadata), _rows(file, opened, "path" in children)


def _rows(file: Path, opened: Any, has_path: bool) -> Iterator[Found]:
    shard = f"{file.name}:{file.stat().st_size}"
    columns = ["label", "image.path"] if has_path else ["label"]
    number = 0
    for group in range(opened.num_row_groups):
        table = _read(file, opened, group, columns)
        labels = table.column("label").to_pylist()
        images = table.column("image").to_pylist() if has_path else [None] * len(labels)
        paths = [image and image["path"] for image in images]  # a row without an image is told as corrupt, by number
        for row, (label, path) in enumerate(zip(labels, paths, strict=True)):
            if label is None:
                raise DataError(f"{file}: row {number} has no label")
            place = ("parquet", str(file), group, row, "image")
            yield Found(path or f"{file.stem}-{number:08d}", 0, shard, place, label)
            number += 1


def read_row(file: str, row_group: int, row: int, column: str) -> bytes:
    """The image bytes of one row. Its row group, and no other, stays in memory for the rows that follow."""
    state = os.stat(file)
    content = _image_column(file, row_group, state.st_size, state.st_mtime_ns)[row].as_py()
    if content is None:
        raise CorruptFile("the row holds no bytes")
    return content


_kept: dict[tuple, Any] = {}  # at most one column: row groups of images are hundreds of megabytes


def _image_column(file: str, row_group: int, size: int, mtime: int) -> Any:  # size and mtime: not of a replaced file
    import pyarrow.compute

    key = (file, row_group, size, mtime)
    if key not in _kept:
        _kept.clear()  # before reading the next
        column = _read(Path(file), _open(Path(file)), row_group, ["image.bytes"]).column("image")
        _kept[key] = pyarrow.compute.struct_field(column, "bytes")
    return _kept[key]


def _open(file: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"reading {file} needs pyarrow: pip install 'vfmtok[parquet]'") from None
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {file}: {str(error).splitlines()[0]}") from None


def _read(file: Path, opened: Any, group: int, columns: list[str]) -> Any:
    import pyarrow

    try:
        return opened.read_row_group(group, columns=columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read row group {group} of {file}: {str(error).splitlines()[0]}") from None


def _class_names(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """``info.features.label.names`` of the "huggingface" schema metadata."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
