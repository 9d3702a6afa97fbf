"""What commands are given, as one sorted list of images with labels and splits: the one listing of all commands.

A source is a folder of class folders, a flat folder (one class), a zip or tar of either, WebDataset shards, parquet
files, ImageNet's archives, or the word ``sample`` (the images that come with the package).

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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from vfmtok.errors import DataError
from vfmtok.sources import classes as class_rules
from vfmtok.sources import imagenet
from vfmtok.sources.class_folders import Image
from vfmtok.sources.containers import Part, read_parts
from vfmtok.sources.files import Found
from vfmtok.sources.given import SAMPLE as SAMPLE
from vfmtok.sources.given import look_at
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

    splits: dict[str, list[Entry]]  # "train" and perhaps "val"
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
    images = [image for part in parts for image in part.images]
    if not images:
        found = ", ".join(f"{count} {kind}" for kind, count in ignored.most_common(5)) or "nothing"
        raise DataError(f"no images in {', '.join(sources)} (found {found})")
    images, has_splits, left_out, notes = _sort_out_splits(images, parts, val_fraction)
    rules = class_rules.read_rules(given, scratch, choices.classes_from, choices.label_key)
    class_rules.check_label_key(choices.label_key, parts, rules)
    images = class_rules.label_all(images, parts, given, rules, ignored, scratch)
    names = class_rules.names_of_numbers(parts)
    classes, label_of = class_rules.number({image.label for image in images}, names, rules)
    listing = _listing(images, classes, label_of, has_splits, val_fraction)
    listing.ignored, listing.left_out, listing.parts = dict(ignored.most_common()), left_out, parts
    listing.notes = [*notes, *class_rules.notes_on_order(classes), *_checks(listing, rules)]
    for part in parts:
        part.images = []  # they are in the splits
    return listing


def _sort_out_splits(
    images: list[Image], parts: list[Part], val_fraction: float | None
) -> tuple[list[Image], bool, int, list[str]]:
    """The images of training and validation, whether there are splits, and what was left out. Raises DataError."""
    found = {image.split for image in images}
    if len(found) == 1:
        only = found.pop()
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
    kept = [image for image in images if image.split != "test"]
    return kept, True, len(images) - len(kept), []


def _listing(
    images: list[Image],
    classes: list[str],
    label_of: dict[int | str, int],
    has_splits: bool,
    val_fraction: float | None,
) -> Listing:
    rows = [image for image in images if image.found.place[0] == "parquet"]  # stay in order: row groups are read whole
    files = [image for image in images if image.found.place[0] != "parquet"]
    files.sort(key=lambda image: image.prefix + image.path)
    splits: dict[str, list[Entry]] = {"train": [], "val": []}
    founds: dict[str, list[Found]] = {"train": [], "val": []}
    taken: set[str] = set()
    repeats: Counter[str] = Counter()
    digest = _Fingerprint()
    for image in itertools.chain(files, rows):
        split = (image.split if has_splits else None) or "train"
        if val_fraction is not None and _hash_share(image.path) < val_fraction:
            split = "val"
        shard_split = f"{split}/" if has_splits and image.found.label is not None else ""
        name = _unique(shard_split + image.prefix + image.path, taken, repeats)
        splits[split].append(Entry(name, label_of[image.label], image.found.place))
        if rows:
            digest.add(split, splits[split][-1], image.found)
        else:
            founds[split].append(image.found)
    if not splits["train"]:
        raise DataError("no image is left for training: lower --val-fraction or add images")
    for split in founds if not rows else ():
        entries = splits[split]
        for index in sorted(range(len(entries)), key=[entry.name for entry in entries].__getitem__):
            digest.add(split, entries[index], founds[split][index])
    splits = {split: entries for split, entries in splits.items() if entries}
    return Listing(splits, classes, digest.hexdigest(), {}, 0)


class _Fingerprint:
    """SHA-256 over what is known of the images: split after split by name or, with parquet, as they come."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, split: str, entry: Entry, found: Found) -> None:
        line = f"{split}\t{entry.name}\t{entry.label}\t{found.size}\t{found.check}\n"
        self._digest.update(line.encode("utf-8", "surrogateescape"))

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


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


def _unique(name: str, taken: set[str], repeats: Counter[str]) -> str:
    """``name``, or the first of ``name-2``, ``name-3``, ... that is free (keys repeat between shards)."""
    candidate = name
    while candidate in taken:
        repeats[name] += 1
        pure = PurePosixPath(name)
        candidate = str(pure.with_name(f"{pure.stem}-{repeats[name] + 1}{pure.suffix}"))
    taken.add(candidate)
    return candidate
