"""Image files that a person names, one by one or by the folder: found, read as evaluation crops, or said to be bad.

Shapes: S crop side.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from torch import Tensor

from vfmtok.data.transforms import EvaluationCrop
from vfmtok.errors import DataError
from vfmtok.evaluation.image_sources import is_dataset
from vfmtok.sources import files as source_files
from vfmtok.sources.containers import find_images
from vfmtok.sources.folders import is_archive
from vfmtok.sources.scratch import Scratch


class ImageFile(NamedTuple):
    name: str  # unique among the files: the path below the folder that was named, or the file's own name
    place: tuple  # argument of source_files.read


def find_image_files(paths: Sequence[str | Path], scratch: Scratch) -> list[ImageFile]:
    """Every image of the folders and archives, by name, and the files themselves, in the order they were given.

    Args:
        scratch: where compressed tars are unpacked; it must outlive the reading.

    Raises:
        DataError: a path is missing, or a folder holds no image or is a prepared dataset.
    """
    found: dict[str, ImageFile] = {}
    for path in map(Path, paths):
        if path.is_dir() and is_dataset(path):
            raise DataError(f"{path} is a prepared dataset, not a folder of images: `vfmtok prepare --export` first")
        if path.is_dir() or is_archive(path.name):
            listed, _ = find_images([os.path.join(".", path)], scratch)  # never the word "sample"
            below = sorted((file.path, file.place) for file in listed)
            if not below:
                raise DataError(f"no image files in {path}")
        elif path.exists():
            below = [(path.name, ("file", str(path)))]
        else:
            raise DataError(f"no image or folder at {path}")
        for name, place in below:
            name = _unused(name, found)
            found[name] = ImageFile(name, place)
    return list(found.values())


def _unused(name: str, taken: dict[str, ImageFile]) -> str:
    """``name``, or the first of name-2, name-3, ... that is free."""
    pure, candidate, number = PurePosixPath(name), name, 1
    while candidate in taken:
        number += 1
        candidate = str(pure.with_name(f"{pure.stem}-{number}{pure.suffix}"))
    return candidate


def read_crops(files: Sequence[ImageFile], size: int) -> list[Tensor | str]:
    """The evaluation crop of each file of a batch, (3,S,S) uint8, or why it can't be read."""
    with ThreadPoolExecutor(4) as pool:  # decoders let go of Python's lock
        return list(pool.map(lambda file: read_crop(file, size), files))


def read_crop(file: ImageFile, size: int) -> Tensor | str:
    try:
        return EvaluationCrop(size)(source_files.read(file.place))
    except (DataError, source_files.CorruptFile) as error:
        return str(error)
