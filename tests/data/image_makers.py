"""Small images and image sources that the tests of the data room share."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vfmtok.sources import files as source_files

ROOT = Path(__file__).parents[2]


def encoded(seed: int, size: tuple[int, int] = (24, 18), fmt: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    """A smooth random picture, encoded."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, fmt, **options)
    return buffer.getvalue()


def noise(seed: int, side: int = 64) -> bytes:
    """A PNG that doesn't compress: 3 * side^2 bytes and a little."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read_tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def class_files(classes=("bird", "cat", "dog"), per_class: int = 4) -> dict[str, bytes]:
    return {
        f"{name}/{i:03d}.{suffix}": encoded(17 * c + i, fmt=fmt)
        for c, name in enumerate(classes)
        for i in range(per_class)
        for suffix, fmt in [("jpg", "JPEG") if i % 2 else ("png", "PNG")]
    }


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def vfmtok(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "vfmtok", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, **options)


def make_parquet(path: Path, rows: list[tuple], names=None, label_type="int64", with_path=True) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": content, "path": name} if with_path else {"bytes": content} for name, content, _ in rows]
    images = [image if image["bytes"] is not None else None for image in images]
    table = pyarrow.table({"image": images, "label": pyarrow.array([row[2] for row in rows], label_type)})
    if names:
        feature = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
    parquet.write_table(table, path, row_group_size=5)
    return path


def contents(listing):
    """split -> [(name, label, bytes)]"""
    return {
        split: [(e.name, e.label, source_files.read(e.place)) for e in entries]
        for split, entries in listing.splits.items()
    }
