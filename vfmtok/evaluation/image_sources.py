"""Images to be measured, wherever they are: an npz, a folder of PNGs, a prepared dataset, or memory.

All give uint8 batches with each image's index, and any rank's share of them: contiguous, nothing dropped and
nothing repeated, whatever the counts.

Shapes: N images, B batch, S side.
"""

import os
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vfmtok.data.dataset_folder import open_split
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import EvaluationCrop, decode_rgb, open_image
from vfmtok.errors import DataError, EvaluationError
from vfmtok.sources import files as source_files
from vfmtok.sources.containers import find_images
from vfmtok.sources.scratch import Scratch


class ImageBatch(NamedTuple):
    images: Tensor  # (B,3,S,S) uint8
    indices: Tensor  # (B,) int64: the places among all N


class ImageSource(Protocol):
    """N images in a fixed order. For the protocol ``crop`` says how they became squares, ``name`` whose they are.

    ``by_class`` says whether the order is one class after the other, where that can be known.
    """

    crop: str
    name: str
    by_class: bool

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[np.ndarray | None]:
        """Images start ... stop - 1, each (S,S,3) uint8; None for a dataset's bad record."""
        ...


def open_images(source: str | Path | np.ndarray | Tensor, size: int | None = None) -> ImageSource:
    """An npz with ``arr_0``, a prepared dataset, uint8 (N,S,S,3) in memory, or what `vfmtok prepare` takes: a folder
    of images, an archive, shards.

    Args:
        size: side of the evaluation crop of files and datasets; files may do without if they are equal squares.

    Raises:
        DataError: nothing of these kinds is there, it is empty, or it holds several splits.
    """
    if isinstance(source, (np.ndarray, Tensor)):
        return ArrayImages(source)
    path = Path(source)
    if path.suffix == ".npz":
        return NpzImages(path)
    if not path.exists():
        raise DataError(f"no images at {path}: expected a .npz file, a folder or an archive")
    if path.is_dir() and is_dataset(path):
        return RecordImages(open_split(path, "val"), size)
    return FolderImages(path, size)


def is_dataset(path: Path) -> bool:
    """Is this the folder of an LMDB, or one that `vfmtok prepare` made?"""
    return (path / "data.mdb").is_file() or any((path / f"{split}_lmdb").is_dir() for split in ("train", "val"))


def size_of(source: ImageSource) -> str:
    """Width x height of the first image, such as "256x256". Raises DataError."""
    first = _first(source)
    if first is None:
        raise DataError(f"{source.name} holds no image that can be read")
    return f"{first.shape[1]}x{first.shape[0]}"


def _first(source: ImageSource) -> np.ndarray | None:
    return next((image for image in source.read(0, len(source)) if image is not None), None)


def batches(source: ImageSource, batch: int, rank: int = 0, world_size: int = 1) -> Iterator[ImageBatch]:
    """This rank's share, from N*rank/world_size on, without bad records.

    Raises DataError for an image of another size than the first of all, in whosever share that is.
    """
    start, stop = (len(source) * part // world_size for part in (rank, rank + 1))
    first = _first(source)
    held: list[np.ndarray] = []
    indices: list[int] = []
    for index, image in enumerate(source.read(start, stop), start):
        if image is not None and image.shape != first.shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (image.shape, first.shape)]
            raise DataError(
                f"image {index} of {source.name} is {sizes[0]}, the first is {sizes[1]}: make them one size"
            )
        if image is not None:
            held.append(image)
            indices.append(index)
        if held and (len(held) == batch or index == stop - 1):
            images = torch.from_numpy(np.stack(held)).permute(0, 3, 1, 2).contiguous()
            yield ImageBatch(images, torch.tensor(indices))
            held, indices = [], []


# --------------------------------------------------------------------------------------
# The sources
# --------------------------------------------------------------------------------------


class ArrayImages:
    """Images in memory, (N,S,S,3) uint8."""

    crop, name, by_class = "as given", "memory", False

    def __init__(self, images: np.ndarray | Tensor):
        images = images.cpu().numpy() if isinstance(images, Tensor) else images
        _check_layout(images.shape, images.dtype, "the images")
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        yield from self._images[start:stop]


class NpzImages:
    """``arr_0`` of an npz, (N,S,S,3) uint8, read image by image: 50,000 samples are 10 GB."""

    crop = "as given"

    def __init__(self, path: Path):
        self.path, self.name = path, path.name
        with self._open() as file:
            self._shape = _read_header(file, path)
        self.by_class = _are_sorted_labels(path)

    def __len__(self) -> int:
        return self._shape[0]

    def read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        size = int(np.prod(self._shape[1:]))
        with self._open() as file:
            _read_header(file, self.path)
            for index in range(stop):
                try:
                    content = file.read(size)
                except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise DataError(f"{self.path} is damaged at image {index}: {error}") from None
                if len(content) != size:
                    raise DataError(f"{self.path} ends at image {index} of {len(self)}")
                if index >= start:
                    yield np.frombuffer(content, np.uint8).reshape(self._shape[1:]).copy()

    def _open(self):
        try:
            return zipfile.ZipFile(self.path).open("arr_0.npy")
        except KeyError:
            raise DataError(f"{self.path} holds no images: it has no 'arr_0'") from None
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read {self.path}: {error}") from None


class FolderImages:
    """The image files of a folder and its subfolders, or of an archive, in the order of their paths."""

    def __init__(self, path: Path, size: int | None):
        scratch = Scratch(tempfile.gettempdir())
        weakref.finalize(self, scratch.__exit__)  # what was unpacked is there as long as its images are
        found, splits = find_images([os.path.join(".", path)], scratch)  # never the word "sample"
        if len(splits) > 1:
            raise DataError(f"{path} holds {' and '.join(sorted(splits))}: name the folder or file that is meant")
        self._files = found.sorted(lambda file: file.path.split("/"))
        if not self._files:
            raise DataError(f"no image files in {path}")
        self._path, self._size = path, size
        self.crop, self.name = _crop_name(size), path.resolve().name
        folder = self._files[0].path.rpartition("/")[0]
        self.by_class = any(file.path.rpartition("/")[0] != folder for file in self._files)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        for file in self._files.between(start, stop):
            try:
                yield _cut(source_files.read(file.place), self._size)
            except (source_files.CorruptFile, DataError) as error:
                raise DataError(f"{self._path / file.path}: {error}") from None


class RecordImages:
    """The records of an LMDB dataset, cropped for evaluation. Bad ones are left out, as in training."""

    def __init__(self, records: RecordDataset, size: int | None):
        if size is None:
            raise DataError(f"{records.path}: say the size of the evaluation crop (--size)")
        self._records, self._size = records, size
        path = Path(records.path).resolve()  # of a split also the dataset's name
        self.crop, self.by_class = _crop_name(size), True
        self.name = "/".join(path.parts[-2:] if path.name.endswith("_lmdb") else path.parts[-1:])

    def __len__(self) -> int:
        return len(self._records)

    def read(self, start: int, stop: int) -> Iterator[np.ndarray | None]:
        for index in range(start, stop):
            try:
                yield _cut(self._records[index].image, self._size)
            except DataError:
                yield None


def _crop_name(size: int | None) -> str:
    return "as given" if size is None else f"centre {size} (BOX halvings, bicubic, centre crop)"


def _cut(content: bytes, size: int | None) -> np.ndarray:
    """Encoded image -> (S,S,3) uint8."""
    if size is None:
        return np.array(decode_rgb(open_image(content)))
    return EvaluationCrop(size)(content).permute(1, 2, 0).numpy()


def _are_sorted_labels(path: Path) -> bool:
    """Whether an npz holds labels beside its images, in ADM's arr_1, and these are in order."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            labels = archive["arr_1"] if "arr_1" in archive.files else np.empty(0)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return False
    return labels.ndim == 1 and len(labels) > 1 and labels[0] != labels[-1] and bool((labels[1:] >= labels[:-1]).all())


def _check_layout(shape: tuple[int, ...], dtype: np.dtype, what: str) -> None:
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or not shape[0]:
        raise EvaluationError(f"{what} must be uint8 (N,H,W,3), got {dtype} {tuple(shape)}")


def _read_header(file, path: Path) -> tuple[int, ...]:
    """Leave ``file`` at the first pixel; the array's shape."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"'arr_0' of {path} is damaged: {error}") from None
    _check_layout(shape, dtype, f"'arr_0' of {path}")
    if fortran_order:
        raise DataError(f"'arr_0' of {path} is in Fortran order; save it in C order")
    return shape
