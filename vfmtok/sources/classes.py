"""Which class every image is of, and which number every class has.

Images know their class by their folder or by a label of their own; the rest get it here: from a file of labels, from
the source's name where nothing else names a class, or not at all, which is an error that names ``--classes-from``.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vfmtok.errors import DataError
from vfmtok.sources import imagenet, label_files
from vfmtok.sources.class_folders import IMAGE, Image
from vfmtok.sources.containers import Part, configurations
from vfmtok.sources.folders import stem_of
from vfmtok.sources.given import Container, Given
from vfmtok.sources.label_files import ClassNames, LabelTable, OrderedLabels
from vfmtok.sources.packed import Packed
from vfmtok.sources.scratch import Scratch
from vfmtok.sources.splits import SplitNames

MAX_CLASSES = 10_000_000  # without names; every one gets an entry in the metadata


@dataclass
class Rules:
    """Where labels and names come from, beyond the images' own places."""

    word: str | None  # "sources" or "none"
    names: ClassNames | None = None
    labels: LabelTable | OrderedLabels | None = None
    named: bool = False  # the user has named the labels: they count more than class folders


def read_rules(given: Given, scratch: Scratch, classes_from: str | None, label_key: str | None) -> Rules:
    """What ``--classes-from`` and the files beside the images say. Raises DataError."""
    if classes_from in ("none", "sources"):
        return Rules(classes_from)
    rules = Rules(None)
    if classes_from == "imagenet":
        rules.names = ClassNames("ImageNet", list(imagenet.synsets()))
    elif classes_from is not None:
        path = Path(classes_from)
        if not path.exists():
            raise DataError(f"--classes-from takes a file, imagenet, sources or none: there is no {classes_from}")
        _add(rules, label_files.read_label_file(path, scratch, label_key))
        rules.named = rules.labels is not None
    for path in given.label_files if rules.labels is None else ():
        by_convention = label_files.BY_CONVENTION.search(path.name) is not None
        try:
            found = label_files.read_label_file(path, scratch, label_key)
        except DataError:
            if not by_convention:
                raise
            continue  # the metadata of these images is something else
        _add(rules, _below(found, path, given) if by_convention else found)
        rules.named |= path in given.named
    return rules


def _add(rules: Rules, found: LabelTable | OrderedLabels | ClassNames) -> None:
    if isinstance(found, ClassNames):
        rules.names = found
    elif isinstance(found, LabelTable) and isinstance(rules.labels, LabelTable):
        rules.labels = LabelTable(f"{rules.labels.name} and {found.name}", rules.labels.by_image | found.by_image)
    elif rules.labels is None:
        rules.labels = found


def _below(table: LabelTable, path: Path, given: Given) -> LabelTable:
    """A metadata.csv names the images of its own folder."""
    for container in given.containers:
        if path.name.startswith("metadata") and path.parent != container.path and path.is_relative_to(container.path):
            folder = path.parent.relative_to(container.path).as_posix()
            return LabelTable(f"{folder}/{path.name}", {f"{folder}/{key}": x for key, x in table.by_image.items()})
    return table


def check_label_key(key: str | None, parts: list[Part], rules: Rules) -> None:
    """Raises DataError if ``--label-key`` names what nothing has."""
    if key is not None and not isinstance(rules.labels, LabelTable) and all(part.labels_from is None for part in parts):
        raise DataError(f"--label-key {key}: no sample and no table has such a label")


# --------------------------------------------------------------------------------------
# A label for every image
# --------------------------------------------------------------------------------------


def label_all(
    images: Packed[Image], parts: list[Part], given: Given, rules: Rules, ignored: Counter[str], scratch: Scratch
) -> Packed[Image]:
    """The images, each with a label; those that a file of labels does not have are left out and counted.

    Raises:
        DataError: it is not clear what the class of some is.
    """
    if rules.word == "none":
        only = _class_of(parts[0].container, True, len(parts))
        return _relabel(images, lambda image: only)
    flat = images.where(lambda image: image.label is None)
    if rules.named and (isinstance(rules.labels, LabelTable) or not flat):
        return _from_file(images, rules.labels, ignored)
    if not flat:
        return images
    known = images.where(lambda image: image.label is not None)
    labels = rules.labels or _labels_beside(flat, parts, scratch)
    if labels is not None:
        return _from_file(flat, labels, ignored, known)
    where, first = parts[flat[0].container].name, flat[0].found.path
    if imagenet.is_validation(image.found.path for image in flat):
        raise DataError(
            f"{where}: {len(flat):,} images of ImageNet's validation without their labels: give "
            "ILSVRC2012_devkit_t12.tar.gz too, or --classes-from FILE with them, or --classes-from none"
        )
    if known and rules.word != "sources":
        raise DataError(
            f"{where}: {len(flat):,} images such as '{first}' have no class, and others do: --classes-from FILE gives "
            "their labels, --classes-from sources makes a class of the source's name"
        )
    if rules.word is None:
        _refuse_ambiguous(flat, parts, given)
    shards = sum(part.is_unlabelled for part in parts)
    names = [_class_of(part.container, part.is_unlabelled, shards) for part in parts]
    known.extend(_relabel(flat, lambda image: names[image.container]))
    return known


def _relabel(images: Packed[Image], label_of: Callable[[Image], int | str]) -> Packed[Image]:
    return images.map(lambda image: image._replace(label=label_of(image)))


def _labels_beside(flat: Packed[Image], parts: list[Part], scratch: Scratch) -> OrderedLabels | None:
    """ImageNet's devkit where it lies beside the images, as torchvision wants it. Raises DataError."""
    if not imagenet.is_validation(image.found.path for image in flat):
        return None
    folder = Path(parts[flat[0].container].container.path).parent
    kits = sorted(path for path in folder.iterdir() if imagenet.is_devkit(path))
    return OrderedLabels(kits[0].name, imagenet.read_devkit(kits[0], scratch)) if kits else None


def _from_file(
    images: Packed[Image], labels: LabelTable | OrderedLabels, ignored: Counter[str], known: Iterable[Image] = ()
) -> Packed[Image]:
    """The images with the labels of a file, after those whose class is ``known``.

    Of images that the file does not have, those keep their folder's class whose folders name the file's classes too.
    """
    if isinstance(labels, OrderedLabels) and {image.label for image in images} >= set(labels.in_order):
        return images  # ImageNet's devkit beside images that are in class folders already
    found = labels.labels([image.found.path for image in images])
    if not any(label is not None for label in found):
        raise DataError(f"{labels.name} has no label for any of {len(images):,} images, '{images[0].found.path}', say")
    kept = Packed(IMAGE, known)
    rest = Packed(IMAGE, (image for image, label in zip(images, found, strict=True) if label is None))
    sorted_in = rest.where(lambda image: image.label is not None)
    classes = {image.label for image in itertools.chain(kept, sorted_in)}
    if classes == set(imagenet.synsets()) and all(label is None or isinstance(label, int) for label in found):
        names = dict(enumerate(imagenet.synsets()))
        found = [names.get(label, label) for label in found]
    odd = next((label for label in found if label is not None and label not in classes), None)
    if kept and odd is not None:
        raise DataError(f"{labels.name} has label {odd!r}, which is none of the classes that folders name")
    if odd is None:
        kept.extend(sorted_in)
    if without := len(rest) - (len(sorted_in) if odd is None else 0):
        ignored[f"images without a label in {labels.name}"] += without
    pairs = zip(images, found, strict=True)
    kept.extend(image._replace(label=label) for image, label in pairs if label is not None)
    return kept


def _refuse_ambiguous(flat: Packed[Image], parts: list[Part], given: Given) -> None:
    """Raises DataError where a name would be made a class though something else may be meant."""
    for table in given.tables:
        columns = [column.lower() for column in label_files.columns_of(Path(table))]
        if set(columns) & set(label_files.IMAGE_COLUMNS) and len(columns) > 1:
            raise DataError(
                f"{table} may hold the labels of {len(flat):,} images: --classes-from {table} takes them from it, "
                "--classes-from sources makes them one class"
            )
    indices = sorted({image.container for image in flat})
    for index in indices:
        if parts[index].container.kind == "table":
            raise DataError(
                f"{parts[index].name} has no column of labels: choose one by --label-key, or --classes-from none"
            )
    plain = [parts[i].container for i in indices if parts[i].container.kind == "archive" and not parts[i].is_unlabelled]
    stems = [stem_of(container.path) for container in plain]
    are_synsets = all(re.fullmatch(r"n\d{8}", stem) for stem in stems)
    if len(stems) > 1 and len({re.sub(r"\d+", "0", stem) for stem in stems}) == 1 and not are_synsets:
        raise DataError(
            f"{stems[0]}, {stems[1]}, ... hold images without labels: --classes-from sources makes a class of each, "
            "--classes-from none one of all"
        )


def _class_of(container: Container, is_shard: bool, shards: int) -> str:
    """What a source without classes calls its images: its name, or that of the folder around a split or shards."""
    path = container.path.absolute()
    if is_shard and container.inside:
        path = container.source.absolute()
    elif is_shard and shards > 1:
        path = path.parent
    while SplitNames().of_folder(stem_of(path)) and path.parent != path:
        path = path.parent
    return stem_of(path)


# --------------------------------------------------------------------------------------
# A number for every class
# --------------------------------------------------------------------------------------


def names_of_numbers(parts: list[Part]) -> list[str] | None:
    """The class names that tables and samples bring with their numbers, by label. Raises DataError."""
    tables = [part for part in parts if part.labels_from is not None and part.container.kind == "table"]
    found = configurations((part.container for part in tables), SplitNames())
    if len(found) > 1:
        raise DataError(f"{tables[0].container.source} holds {', '.join(found)}: name the one that is meant")
    for part in tables[1:]:
        if part.names != tables[0].names:
            raise DataError(f"{part.name} has other class names than the files before it")
    if tables:
        return tables[0].names
    return complete_names(item for part in parts for item in part.names_of_numbers.items())


def complete_names(said: Iterable[tuple[int, str]]) -> list[str] | None:
    """The names by number, or None where they contradict each other or some number has none."""
    names: dict[int, str] = {}
    for number, name in said:
        if names.setdefault(number, name) != name:
            return None  # they are not names of classes
    complete = names and set(names) == set(range(len(names))) and len(set(names.values())) == len(names)
    return [names[number] for number in range(len(names))] if complete else None


def number(found: set[int | str], names: list[str] | None, rules: Rules) -> tuple[list[str], dict[int | str, int]]:
    """Class names by label, and the label of every class or number that was found. Raises DataError."""
    numbers = {label for label in found if isinstance(label, int)}
    if rules.names is not None:
        return _as_listed(rules.names, found, numbers)
    if not numbers:
        classes = sorted(found)
        return classes, {name: label for label, name in enumerate(classes)}
    if numbers != found:
        raise DataError("some sources label their images by number and some by name")
    if names is None or len(names) <= max(numbers):
        if max(numbers) >= MAX_CLASSES:
            raise DataError(f"label {max(numbers)} would mean more than {MAX_CLASSES} classes: number them from 0")
        names = [str(number) for number in range(max(numbers) + 1)]
    if min(numbers) < 0:
        raise DataError(f"label {min(numbers)}: classes count from 0")
    return names, {number: number for number in numbers}


def _as_listed(listed: ClassNames, found: set[int | str], numbers: set[int]) -> tuple[list[str], dict[int | str, int]]:
    if len(set(listed.by_label)) < len(listed.by_label) and numbers != found:
        raise DataError(f"{listed.name} names a class twice")
    label_of: dict[int | str, int] = {name: label for label, name in enumerate(listed.by_label)}
    label_of |= {number: number for number in numbers if 0 <= number < len(listed.by_label)}
    odd = next((label for label in sorted(found, key=str) if label not in label_of), None)
    if odd is not None:
        raise DataError(f"class {odd!r} is not among the {len(listed.by_label)} that {listed.name} lists")
    return listed.by_label, label_of


def notes_on_order(classes: list[str]) -> list[str]:
    """A word on labels that are not the numbers that the classes are called by."""
    odd = next(((label, name) for label, name in enumerate(classes) if name.isdecimal() and int(name) != label), None)
    if odd is None or not all(name.isdecimal() for name in classes):
        return []
    label, name = odd
    return [
        f"labels follow the names sorted as text: class '{name}' has label {label} (--classes-from FILE: your order)"
    ]
