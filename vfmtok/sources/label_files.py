"""Labels and class names that lie in a file of their own, which ``--classes-from`` or a convention names.

* A table of images and labels: .csv, .tsv, .jsonl, or lines "image label". Kaggle's LOC_val_solution.csv, Tiny
  ImageNet's val_annotations.txt and the metadata.csv of `datasets` are such.
* The names of the classes, one a line, by label: classes.txt, LOC_synset_mapping.txt.
* One label a line, of images in the order of their names: ImageNet's published validation labels.
* ImageNet's devkit, packed or unpacked.
"""

import csv
import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfmtok.errors import DataError
from vfmtok.sources import imagenet
from vfmtok.sources.files import image_by_name
from vfmtok.sources.folders import is_archive
from vfmtok.sources.scratch import Scratch
from vfmtok.sources.webdataset import as_label, label_of_document

IMAGE_COLUMNS = (
    "file_name", "filename", "file", "image", "image_id", "imageid", "img", "path", "filepath", "id", "name",
)  # fmt: skip
LABEL_COLUMNS = ("label", "class", "predictionstring", "breed", "species", "diagnosis", "labels")
TABLES = (".csv", ".tsv", ".jsonl")
BY_CONVENTION = re.compile(
    r"(LOC_val_solution\.csv|val_annotations\.txt|metadata\.(csv|jsonl))$"
)  # in a folder, taken without asking


@dataclass
class LabelTable:
    """Labels by image."""

    name: str
    by_image: dict[str, int | str]  # keys are paths or their ends, with or without the extension

    def labels(self, paths: Sequence[str]) -> list[int | str | None]:
        """The label of every image, None where there is no row."""
        found = [self._label(path) for path in paths]
        if any(label is not None for label in found):
            return found
        by_name = {posixpath.basename(image): label for image, label in self.by_image.items()}  # its paths are others
        if len(by_name) < len(self.by_image):
            return found
        return [by_name.get(posixpath.basename(path)) for path in paths]

    def _label(self, path: str) -> int | str | None:
        while True:  # the whole path first, then what is left without its first folder
            for key in (path, posixpath.splitext(path)[0]):
                if key in self.by_image:
                    return self.by_image[key]
            _, slash, path = path.partition("/")
            if not slash:
                return None


@dataclass
class OrderedLabels:
    """Labels of images in the order of their names, as ImageNet's validation labels are published."""

    name: str
    in_order: list[int | str]

    def labels(self, paths: Sequence[str]) -> list[int | str | None]:
        """Raises DataError: there are other images than labels, and no numbers in their names."""
        numbers = [imagenet.number_of(path) or 0 for path in paths]
        if len(paths) == len(self.in_order):
            place = {path: index for index, path in enumerate(sorted(paths, key=posixpath.basename))}
            return [self.in_order[place[path]] for path in paths]
        if min(numbers) < 1 or max(numbers) > len(self.in_order):
            raise DataError(f"{self.name} has {len(self.in_order):,} labels for {len(paths):,} images")
        return [self.in_order[number - 1] for number in numbers]


@dataclass
class ClassNames:
    """The names of the classes by label."""

    name: str
    by_label: list[str]


def read_label_file(path: Path, scratch: Scratch, key: str | None = None) -> LabelTable | OrderedLabels | ClassNames:
    """What a file says of labels; ``key`` is ``--label-key``, the column of a table.

    Raises:
        DataError: it can't be read, or it is not clear what it says.
    """
    if imagenet.is_devkit(path) or path.is_dir() or is_archive(path.name):
        return OrderedLabels(path.name, imagenet.read_devkit(path, scratch))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read labels from {path}: {error}") from None
    if path.suffix.lower() in TABLES:
        return _table(path, _rows(path, text), key)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty: it should hold labels or the names of classes")
    if path.name == imagenet.ANSWERS:
        raise DataError(
            f"{path} numbers classes in an order that only the devkit's meta.mat tells: give the devkit, "
            "ILSVRC2012_devkit_t12.tar.gz or its folder"
        )
    if all("\t" in line for line in lines):  # further columns are boxes
        pairs = [line.split("\t")[:2] for line in lines]
    else:
        pairs = [re.split(r"[\s,;]+", line, maxsplit=1) for line in lines]
    if all(len(pair) == 2 and image_by_name(pair[0]) for pair in pairs):
        return LabelTable(path.name, _keyed(path, [(image, as_label(x, str(path), typed=False)) for image, x in pairs]))
    names = [pair[0] if re.fullmatch(r"n\d{8}", pair[0]) else line for pair, line in zip(pairs, lines, strict=True)]
    if len(set(names)) == len(names):
        return ClassNames(path.name, names)
    return OrderedLabels(path.name, [as_label(name, str(path), typed=False) for name in names])


def columns_of(path: Path) -> list[str]:
    """The columns of a table, by its first row; nothing if it is none."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                return list(json.loads(file.readline()))
            return next(csv.reader(file, delimiter=_delimiter(path)), [])
    except (OSError, ValueError, TypeError, csv.Error):
        return []


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _rows(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no object")
            return rows
        return list(csv.DictReader(text.splitlines(), delimiter=_delimiter(path)))
    except (ValueError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def _table(path: Path, rows: list[dict[str, Any]], key: str | None) -> LabelTable:
    columns = {str(column).lower(): column for column in (rows[0] if rows else {})}
    image = next((columns[name] for name in IMAGE_COLUMNS if name in columns), None)
    if image is None:
        raise DataError(f"{path} has no column of images, such as {', '.join(IMAGE_COLUMNS[:4])}: {', '.join(columns)}")
    if key is not None and key.lower() not in columns:
        raise DataError(f"{path} has no column '{key}' (--label-key), only {', '.join(columns)}")
    usual = [columns[name] for name in LABEL_COLUMNS if name in columns]
    label = columns[key.lower()] if key else usual[0] if len(usual) == 1 else None
    others = [column for column in columns.values() if column != image]
    if label is None and not usual and len(others) == 1:
        label = others[0]
    pairs = []
    for number, row in enumerate(rows, 2):
        where = f"{path}, line {number}"
        if label is not None:
            value = as_label(row.get(label), where, typed=False)
        elif usual:
            raise DataError(f"{path} has several labels: choose one by --label-key {' or '.join(usual)}")
        else:
            value = label_of_document({str(name).lower(): x for name, x in row.items()}, where)[0]
        if value is None:
            raise DataError(f"{where} has no label: --label-key names its column, of {', '.join(map(str, others))}")
        if str(label).lower() == "predictionstring":  # Kaggle's: synset and boxes
            value = str(value).split()[0]
        pairs.append((str(row.get(image)), as_label(value, where, typed=False)))
    return LabelTable(path.name, _keyed(path, pairs))


def _keyed(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for image, label in pairs:
        image = posixpath.normpath(image.replace("\\", "/"))
        if found.setdefault(image, label) != label:
            raise DataError(f"{path} has two labels for '{image}': {found[image]} and {label}")
    return found
