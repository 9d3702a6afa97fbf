"""LlamaGen's code folders: one small file an image, as its extraction script leaves them for ``--code-path``.

    ROOT/{dataset}{S}_codes/{n}.npy     (1,V,K) int64
    ROOT/{dataset}{S}_labels/{n}.npy    (1,) int64

n is the image's index in ImageFolder order: sorted classes, sorted files in each. What the V views are is not stored.
Several processes pad their shares by starting over, so up to one file a process repeats the first images at the end.

Shapes: N images, M files, b images of a block, V views, K tokens.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vfmtok.errors import DataError

FLIP = (0, 1)  # the evaluation crop, then its mirror image
# Four corners and the centre, then the same corners of the mirrored picture; ours are the mirror images of each.
TEN_CROP = (0, 1, 2, 3, 4, 6, 5, 8, 7, 9)


class PublishedCodes:
    """A folder of them, checked as far as it can be without reading all codes.

    Attributes:
        path: of the codes.
        labels: (N,) int64, without the repeated files.
        repeated: how many files at the end repeat the first ones.
    """

    def __init__(self, root: Path, image_size: int, order: tuple[int, ...], num_tokens: int, count: int | None = None):
        """
        Args:
            root: the folder that holds both, or that of the codes.
            image_size: S, which of several is meant.
            order: our view n is their view ``order[n]``.
            count: N; None: found the labels only rise, so N ends where they fall.

        Raises:
            DataError: it is no such folder, an image or label is missing, or files repeat what they should not.
        """
        self.path, self._labels = _find(root, image_size)
        self._order, self._shape = order, (1, len(order), num_tokens)
        self._files = _check_names(self.path, self._labels)
        labels = np.array([self._read_label(n) for n in range(self._files)], np.int64)
        falls = np.flatnonzero(np.diff(labels) < 0) + 1
        count = count or (int(falls[0]) if len(falls) else self._files)
        if count > self._files:
            raise DataError(f"{self.path} holds {self._files:,} of {count:,} images: the extraction was not finished")
        self.labels, self.repeated = labels[:count], self._files - count
        self._check_repeated(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Iterable[int]) -> np.ndarray:
        """(b,V,K) int64, in our order of views. Raises DataError: a file is damaged or of another shape."""
        return np.stack([self._read_codes(n)[0][list(self._order)] for n in indices])

    def _read_codes(self, index: int) -> np.ndarray:
        path = self.path / f"{index}.npy"
        codes = _read(path)
        if codes.shape != self._shape or codes.dtype.kind not in "iu":
            says = f"{len(self._order)} views of {self._shape[2]} tokens"
            raise DataError(f"{path} holds {codes.shape} {codes.dtype}, not {self._shape} integers ({says})")
        return codes.astype(np.int64)

    def _read_label(self, index: int) -> int:
        path = self._labels / f"{index}.npy"
        label = _read(path)
        if label.shape != (1,) or label.dtype.kind not in "iu" or label[0] < 0:
            raise DataError(f"{path} holds {label.shape} {label.dtype}, not one label")
        return int(label[0])

    def _check_repeated(self, labels: np.ndarray) -> None:
        count = len(self.labels)
        if (np.diff(self.labels) < 0).any():
            fall = int(np.flatnonzero(np.diff(self.labels) < 0)[0]) + 1
            raise DataError(f"{self._labels}: label {labels[fall]} of image {fall} is below the one before it, which "
                            "ImageFolder's order does not allow")  # fmt: skip
        for n in range(count, self._files):
            first = n - count
            same = first < count and labels[n] == labels[first]
            if not same or not np.array_equal(self._read_codes(n), self._read_codes(first)):
                raise DataError(
                    f"{self.path / f'{n}.npy'} comes after all {count:,} images and does not repeat image {first}: "
                    "the files are not in ImageFolder's order, or --count is wrong"
                )


def _find(root: Path, image_size: int) -> tuple[Path, Path]:
    """The folders of codes and of labels. Raises DataError."""
    places = [root] if root.name.endswith("_codes") else sorted(root.glob("*_codes"))
    places = [place for place in places if place.is_dir()]
    fitting = [place for place in places if re.search(rf"(?<!\d){image_size}_codes$", place.name)]
    found = fitting if len(places) > 1 else places
    if len(found) != 1:
        there = ", ".join(place.name for place in places) or "none"
        raise DataError(
            f"{root} must hold one folder of codes at {image_size} px, {{dataset}}{image_size}_codes, but holds {there}"
        )
    size = re.search(r"(\d+)_codes$", found[0].name)
    if size and not fitting:
        raise DataError(f"{found[0]} is of images at {size[1]} px, the tokenizer takes {image_size} (image_size)")
    labels = found[0].with_name(found[0].name.removesuffix("_codes") + "_labels")
    if not labels.is_dir():
        raise DataError(f"there is no {labels} beside {found[0].name}")
    return found[0], labels


def _check_names(codes: Path, labels: Path) -> int:
    """How many files there are: M, numbered from 0 without a gap in both folders. Raises DataError."""
    numbers = {}
    for folder in (codes, labels):
        with os.scandir(folder) as entries:
            numbers[folder] = {int(e.name[:-4]) for e in entries if re.fullmatch(r"\d+\.npy", e.name)}
    last = max((n for found in numbers.values() for n in found), default=-1)
    for folder, found in numbers.items():
        missing = sorted(set(range(last + 1)) - found)
        if missing or last < 0:
            first = ", ".join(f"{n}.npy" for n in missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise DataError(f"{folder} lacks {len(missing):,} of {last + 1:,} files: {first}" if missing else
                            f"{folder} holds no file such as 0.npy")  # fmt: skip
    return last + 1


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from None
