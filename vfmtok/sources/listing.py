"""What commands are given, as one sorted list of images with labels and splits: the one listing of all commands.

A source is a folder of class folders, a flat folder (one class), a zip or tar of either, WebDataset shards, parquet or
Arrow files, ImageNet's archives, or the word ``sample`` (the images that come with the package).

* Splits: by the names of folders, sources and shards, see splits.py; "test" is left out. Images that all fall into one
  split are no split: they are "train".
* Labels: the index into the sorted names of the classes of all splits, as in torchvision; names sort as text, so "10"
  comes before "2". Shards that hold numbers keep them; the names then come from the metadata or are the numbers.
* Order: by name; rows of parquet files stay in their order, because row groups are read whole.
* What is ambiguous is an error that names the flag which decides it; see ``Choices``.
* Fingerprint: what a listing says without reading the images, see ``FINGERPRINT_COVERS``. Modification
  times are left out on purpose. They would tell an image edited in place to the very same size, which
  compressed files hardly ever have; but they change with every copy, and clusters copy the same source to a
  new scratch disk for each job, which must not forbid to continue. The contents that were stored are in the
  fingerprint of the dataset itself.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from vfmtok.errors import DataError
from vfmtok.sources import classes as class_rules
from vfmtok.sources import imagenet
from vfmtok.sources.class_folders import IMAGE, Image
from vfmtok.sources.containers import Part, read_parts
from vfmtok.sources.folders import is_archive
from vfmtok.sources.given import SAMPLE as SAMPLE
from vfmtok.sources.given import look_at
from vfmtok.sources.packed import Layout, Packed
from vfmtok.sources.scratch import Scratch
from vfmtok.sources.splits import SplitNames
from vfmtok.sources.webdataset import Keys

FINGERPRINT_COVERS = (
    "names, labels, splits and sizes of the images, the checksums a zip holds, names and sizes of parquet files; "
    "not the contents, not modification times"
)


class Entry(NamedTuple):
    """One image to be read."""

    name: str  # unique; becomes Record.name
    label: int
    place: tuple  # argument of files.read


ENTRY = Layout(tuple, Entry._make)


class Choices(NamedTuple):
    """What the user says where sources are ambiguous, by the flags' names."""

    split: Sequence[str] = ()  # NAME=SPLIT, or "none"
    label_key: str | None = None
    image_key: str | None = None
    classes_from: str | None = None  # a file, "imagenet", "sources" or "none"


NO_CHOICES = Choices()


@dataclass
class Listing:
    """All images of the sources."""

    splits: dict[str, Packed[Entry]]  # "train" and perhaps "val"
    classes: list[str]  # names by label
    fingerprint: str  # SHA-256 over the sorted lines (with parquet: as they come) "split, name, label, size, check"
    ignored: dict[str, int]  # files that are not used: how many of each extension, or of each reason
    left_out: int  # images of the test split
    parts: list[Part] = field(default_factory=list)  # where the images come from
    notes: list[str] = field(default_factory=list)  # what else there is to know

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))


def list_sources(
    sources: list[str], scratch: Scratch, val_fraction: float | None = None, choices: Choices = NO_CHOICES
) -> Listing:
    """List every image of the sources.

    Args:
        sources: paths, patterns such as ``shard-{000..127}.tar``, or ``sample``; the file of labels may be among them.
        scratch: where compressed tars are unpacked; it must outlive the reading.
        val_fraction: the share of images that go to the validation split, by a hash of class folder
            and file name, so an image's split does not depend on the other images.
        choices: of the user.

    Raises:
        DataError: a source is missing, unreadable, empty, or its labels or splits make no sense or are ambiguous.
    """
    given = look_at(sources)
    keys = Keys(choices.image_key, choices.label_key)
    labelled = choices.classes_from != "none"
    split_names = SplitNames(choices.split)
    parts = read_parts(given, scratch, keys, split_names, labelled)
    split_names.check_used()
    ignored = sum((part.ignored for part in parts), given.strays)
    images = Packed(IMAGE)
    for part in parts:
        images.extend(part.images)
        part.images = Packed(IMAGE)
    if not images:
        found = ", ".join(f"{count} {kind}" for kind, count in ignored.most_common(5)) or "nothing"
        packed = any(is_archive(f"x{kind}") for kind in ignored)
        hint = ": what is packed in an archive must be unpacked first" if packed else ""
        raise DataError(f"no images in {', '.join(sources)} (found {found}){hint}")
    images, has_splits, left_out, notes = _sort_out_splits(images, parts, val_fraction)
    rules = class_rules.read_rules(given, scratch, choices.classes_from, choices.label_key)
    class_rules.check_label_key(choices.label_key, parts, rules)
    images = class_rules.label_all(images, parts, given, rules, ignored, scratch)
    names = class_rules.names_of_numbers(parts)
    classes, label_of = class_rules.number({image.label for image in images}, names, rules)
    listing = _listing(images, classes, label_of, has_splits, val_fraction)
    listing.ignored, listing.left_out, listing.parts = dict(ignored.most_common()), left_out, parts
    listing.notes = [*notes, *class_rules.notes_on_order(classes), *_checks(listing, rules)]
    return listing


def _sort_out_splits(
    images: Packed[Image], parts: list[Part], val_fraction: float | None
) -> tuple[Packed[Image], bool, int, list[str]]:
    """The images of training and validation, whether there are splits, and what was left out. Raises DataError."""
    found = sum((part.splits for part in parts), Counter())  # how many images are in each
    if len(found) == 1:
        only = next(iter(found))
        note = f"all images are of a split called '{only}': there is nothing to tell apart, they become train"
        return images, False, 0, [note] if only in ("val", "test") else []
    if None in found:
        odd = next(image for image in images if image.split is None)
        where = parts[odd.container].name
        raise DataError(
            f"some images belong to a train, val or test split by name, but '{odd.found.path}' of {where} does not: "
            f"--split {PurePosixPath(where).name.split('.')[0]}=train, say, or --split none"
        )
    if val_fraction is not None and "val" in found:
        raise DataError("the sources have a validation split already: leave out --val-fraction")
    kept = images.where(lambda image: image.split != "test") if "test" in found else images
    return kept, True, found["test"], []


def _listing(
    images: Packed[Image],
    classes: list[str],
    label_of: dict[int | str, int],
    has_splits: bool,
    val_fraction: float | None,
) -> Listing:
    rows = images.where(lambda image: image.found.place[0] == "parquet")  # stay in order: row groups are read whole
    files = images.where(lambda image: image.found.place[0] != "parquet") if rows else images
    files = files.sorted(lambda image: image.prefix + image.path)
    in_order = Packed(IMAGE, files)
    in_order.extend(rows)
    splits = {"train": Packed(ENTRY), "val": Packed(ENTRY)}
    fingerprint = _Fingerprint(sort=not rows)

    def split_of(image: Image) -> str:
        if val_fraction is not None and _hash_share(image.path) < val_fraction:
            return "val"
        return (image.split if has_splits else None) or "train"

    def name_of(image: Image, split: str) -> str:
        shard_split = f"{split}/" if has_splits and image.found.label is not None else ""
        return shard_split + image.prefix + image.path

    unique = _UniqueNames(name_of(image, split_of(image)) for image in in_order)
    for image in in_order:
        split = split_of(image)
        entry = Entry(unique(name_of(image, split)), label_of[image.label], image.found.place)
        splits[split].append(entry)
        fingerprint.add(split, entry, image.found.size, image.found.check)
    if not splits["train"]:
        raise DataError("no image is left for training: lower --val-fraction or add images")
    splits = {split: entries for split, entries in splits.items() if entries}
    return Listing(splits, classes, fingerprint.hexdigest(), {}, 0)


class _Fingerprint:
    """SHA-256 over what is known of the images: split after split by name, or as they come."""

    def __init__(self, sort: bool):
        self._lines = {split: Packed(_LINE) for split in ("train", "val")} if sort else None
        self._digest = hashlib.sha256()

    def add(self, split: str, entry: Entry, size: int, check: str) -> None:
        line = entry.name, entry.label, size, check
        if self._lines is None:
            self._update(split, line)
        else:
            self._lines[split].append(line)

    def _update(self, split: str, line: tuple) -> None:
        text = "\t".join(map(str, (split, *line))) + "\n"
        self._digest.update(text.encode("utf-8", "surrogateescape"))

    def hexdigest(self) -> str:
        for split, lines in (self._lines or {}).items():
            for line in lines.sorted(key=itemgetter(0)):
                self._update(split, line)
        return self._digest.hexdigest()


_LINE = Layout(tuple, tuple)  # name, label, size, check


def _checks(listing: Listing, rules: class_rules.Rules) -> list[str]:
    """What there is to say of the classes. Raises DataError if they are ImageNet's and the labels are not."""
    if rules.names is not None and tuple(rules.names.by_label) != imagenet.synsets():
        return []  # the user's own order
    known_as = {name: file for part in listing.parts for name, file in part.known_as.items()}
    entries = itertools.chain.from_iterable(listing.splits.values())
    images = ((f"{e.name} {known_as.get(e.name[e.name.rfind('/') + 1 :], '')}".strip(), e.label) for e in entries)
    said = imagenet.verify(listing.classes, images)
    return [said] if said else []


def _hash_share(path: str) -> float:
    """A number in [0,1) that depends on the path alone."""
    return int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


class _UniqueNames:
    """Gives every image a name of its own: the one it has, or the first of ``name-2``, ``name-3``, ... that is free.

    Keys repeat between shards. Kept are the names that come again, and of the rest the hashes.

    Args:
        names: all, in the order in which they will be asked for.
    """

    def __init__(self, names: Iterable[str]):
        hashes = np.fromiter(map(hash, names), np.int64)
        unique, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        self._again = frozenset(unique[counts > 1].tolist())
        self._hashes, self._first = (unique, first) if self._again else (None, None)
        self._given: set[str] = set()  # names that come again, and new ones
        self._repeats: Counter[str] = Counter()
        self._place = -1

    def __call__(self, name: str) -> str:
        self._place += 1
        if not self._again:
            return name
        candidate = name
        while candidate in self._given or (candidate is not name and self._came_before(candidate)):
            self._repeats[name] += 1
            pure = PurePosixPath(name)
            candidate = str(pure.with_name(f"{pure.stem}-{self._repeats[name] + 1}{pure.suffix}"))
        if candidate is not name or hash(name) in self._again:
            self._given.add(candidate)
        return candidate

    def _came_before(self, name: str) -> bool:
        found = int(np.searchsorted(self._hashes, hash(name)))
        is_one = found < len(self._hashes) and int(self._hashes[found]) == hash(name)
        return is_one and int(self._first[found]) < self._place
