"""What `vfmtok prepare` is given, as one sorted list of images with labels and splits.

A source is a folder of class folders, a flat folder (one class), a zip or tar of either, WebDataset
shards, parquet files, or the word ``sample`` (the images that come with the package).

* Splits: top-level folders train/, val/ (or validation/) and test/; for several sources, their own
  names ("train", "val-0001.tar"). Images that all fall into one split are no split: they are "train".
* Labels: the index into the sorted names of the classes of all splits. Shards that hold numbers keep
  them; the names then come from the Hugging Face metadata or are the numbers.
* Order: by name; rows of parquet files stay in their order, because row groups are read whole.
* Tars inside a tar are folders of their names: a tar of class tars has a class per tar.
* Fingerprint: what a listing says without reading the images, see ``FINGERPRINT_COVERS``. Modification
  times are left out on purpose. They would tell an image edited in place to the very same size, which
  compressed files hardly ever have; but they change with every copy, and clusters copy the same source to a
  new scratch disk for each job, which must not forbid to continue. The contents that were stored are in the
  fingerprint of the dataset itself.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vfmtok.errors import DataError
from vfmtok.sources import files as source_files
from vfmtok.sources import parquet, webdataset
from vfmtok.sources.archives import walk_tar, walk_zip
from vfmtok.sources.files import Found
from vfmtok.sources.folders import walk_folder
from vfmtok.sources.scratch import Scratch

TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".tar.gz", ".tar.bz2", ".tar.xz")
SAMPLE = Path(__file__).parents[1] / "data/samples" / "emoji64.zip"
FINGERPRINT_COVERS = (
    "names, labels, splits and sizes of the images, the checksums a zip holds, names and sizes of parquet files; "
    "not the contents, not modification times"
)
MAX_CLASSES = 10_000_000  # without names; every one gets an entry in the metadata
SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


class Entry(NamedTuple):
    """One image to be read."""

    name: str  # unique; becomes Record.name
    label: int
    place: tuple  # argument of source_files.read


@dataclass
class Listing:
    """All images of the sources."""

    splits: dict[str, list[Entry]]  # "train" and perhaps "val"
    classes: list[str]  # names by label
    fingerprint: str  # SHA-256 over the sorted lines (with parquet: as they come) "split, name, label, size, check"
    ignored: dict[str, int]  # files that are no images by their name, counted by extension
    left_out: int  # images of the test split

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))


class _Image(NamedTuple):
    """A found image while its name, class and split are worked out."""

    prefix: str  # source and split folders, "" or ending in "/"
    path: str  # class folder and file name
    split: str | None
    label: int | str
    found: Found


def list_sources(sources: list[str], scratch: Scratch, val_fraction: float | None = None) -> Listing:
    """List every image of the sources.

    Args:
        sources: paths, a brace pattern such as ``shard-{000..127}.tar``, or ``sample``.
        scratch: where compressed tars are unpacked; it must outlive the reading.
        val_fraction: the share of images that go to the validation split, by a hash of class folder
            and file name, so an image's split does not depend on the other images.

    Raises:
        DataError: a source is missing, unreadable, empty, or its labels or splits make no sense.
    """
    paths = list(dict.fromkeys(path for source in sources for path in _expand(source)))  # nested braces repeat some
    prefixes = _prefixes(paths)
    images: list[_Image] = []
    names_of_numbers: list[str] | None = None
    ignored: Counter[str] = Counter()
    for path, prefix in zip(paths, prefixes, strict=True):
        if path.suffix.lower() == ".parquet":
            names, rows = parquet.walk_parquet(path)
            if names_of_numbers is not None and names != names_of_numbers:
                raise DataError(f"{path} has other class names than the files before it")
            names_of_numbers = names
            images += [_shard_image(path, found, names) for found in rows]
            continue
        files = list(_walk(path, scratch))
        candidates = [found for found in files if source_files.is_image(found)]
        shard = webdataset.read_shard(str(path), files) if path.is_file() else None
        if shard is not None and shard.labels_from is not None:
            images += [_shard_image(path, found, None) for found in shard.images]
            labels = [found for found in files if found.path.endswith((".cls", ".json"))]  # used, not ignored
        else:
            images += _folder_images(path, candidates, prefix)
            labels = []
        counted = {found.path for found in itertools.chain(candidates, labels)}
        ignored.update(source_files.kind_of_ignored(found.path) for found in files if found.path not in counted)
    if not images:
        found = ", ".join(f"{count} {kind}" for kind, count in ignored.most_common(5)) or "nothing"
        raise DataError(f"no images in {', '.join(sources)} (found {found})")
    return _listing(images, names_of_numbers, ignored, val_fraction)


def _expand(source: str) -> list[Path]:
    """A source as the files or folders to list."""
    if source == "sample":
        return [SAMPLE]
    if "{" in source and not Path(source).exists():
        return [path for text in _expand_braces(source) for path in _expand(text)]
    path = Path(source)
    if not path.exists():
        raise DataError(f"no such source: {source}")
    if path.is_dir():
        shards = sorted(p for p in path.rglob("*") if p.suffix.lower() in (".parquet", *TAR_SUFFIXES))
        if shards and not any(source_files.is_image(found) for found in walk_folder(path)):
            return [shard for found in shards for shard in _expand(str(found))]
        return [path]
    if not path.name.lower().endswith((".zip", ".parquet", *TAR_SUFFIXES)):
        raise DataError(f"{source} is no folder, .zip, .tar, .tar.gz, .tgz or .parquet")
    if not path.is_file():
        raise DataError(f"{source} is not a regular file")  # opening a pipe would wait for its writer
    return [path]


def _expand_braces(pattern: str) -> list[str]:
    """``a{0..2}b{x,y}`` as the shell would write it out; leading zeros are kept."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = match[1].split(",")
    return [text for c in choices for text in _expand_braces(pattern[: match.start()] + c + pattern[match.end() :])]


def _walk(path: Path, scratch: Scratch) -> Iterable[Found]:
    if path.is_dir():
        return walk_folder(path)
    return walk_zip(path) if path.suffix.lower() == ".zip" else walk_tar(path, scratch)


def _stem(path: Path) -> str:
    """A source's name without the extensions of archives."""
    return re.sub(r"(\.zip|\.parquet|\.t(ar|gz|bz2|xz)|\.tar\.\w+)$", "", path.resolve().name, flags=re.I)


def _prefixes(paths: list[Path]) -> list[str]:
    """What names of each source begin with: nothing for one source, its own name among several."""
    if len(paths) == 1:
        return [""]
    stems = [_stem(path) for path in paths]
    repeats = [stems[:i].count(stem) for i, stem in enumerate(stems)]
    return [f"{stem}-{repeat + 1}/" if repeat else f"{stem}/" for stem, repeat in zip(stems, repeats, strict=True)]


def _split_of_source(source: Path) -> str | None:
    """The split a source is named after: a folder by its whole name, a file by any word of it, such
    as ``validation-00000-of-00014.parquet``."""
    words = [source.resolve().name.lower()] if source.is_dir() else re.split(r"[^a-z]+", _stem(source).lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


# --------------------------------------------------------------------------------------
# Classes and splits of one source
# --------------------------------------------------------------------------------------


def _folder_images(source: Path, files: list[Found], prefix: str) -> list[_Image]:
    """Images whose class is their folder (or, in a flat source, the source)."""
    parts = [PurePosixPath(found.path).parts for found in files]
    if source.is_file() and parts and min(map(len, parts)) > 2 and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]  # the one folder that an archive wraps its content in
    split_folders = bool(parts) and all(len(p) > 1 and p[0] in SPLITS for p in parts)
    images = []
    for found, part in zip(files, parts, strict=True):
        split = SPLITS[part[0]] if split_folders else None
        head, tail = (prefix + part[0] + "/", part[1:]) if split_folders else (prefix, part)
        label = tail[0] if len(tail) > 1 else _stem(source)
        images.append(
            _Image(head, "/".join(tail), split or (_split_of_source(source) if prefix else None), label, found)
        )
    flat = [image for image in images if "/" not in image.path]
    if flat and len(flat) < len(images):
        raise DataError(
            f"{source}: {len(flat)} images lie beside the class folders, such as {flat[0].path}: sort them in"
        )
    return images


def _shard_image(shard: Path, found: Found, names: list[str] | None) -> _Image:
    """An image of a WebDataset or parquet shard: named by its class folder and key."""
    label = found.label
    if type(label) not in (int, str):
        raise DataError(f"{shard}: '{found.path}' has label {label!r:.80}: labels must be whole numbers or text")
    if isinstance(label, int) and label >= 2**31:
        raise DataError(f"{shard}: '{found.path}' has label {label}, which is too large for a class")
    if isinstance(label, int) and (label < 0 or (names is not None and label >= len(names))):
        if _split_of_source(shard) != "test":  # unlabelled test sets hold -1
            raise DataError(f"{shard}: '{found.path}' has label {label}, outside the {len(names or [])} class names")
        label = 0
    class_name = names[label] if names is not None and isinstance(label, int) else str(label)
    folder = class_name.replace("/", "_") + "/"
    path = found.path if found.path.startswith(folder) else folder + PurePosixPath(found.path).name
    return _Image("", path, _split_of_source(shard), label, found)


# --------------------------------------------------------------------------------------
# All sources together
# --------------------------------------------------------------------------------------


def _listing(
    images: list[_Image], names: list[str] | None, ignored: Counter[str], val_fraction: float | None
) -> Listing:
    has_splits = len({image.split for image in images}) > 1
    if has_splits and any(image.split is None for image in images):
        odd = next(image for image in images if image.split is None)
        raise DataError(f"some images belong to a train, val or test split by name, but '{odd.found.path}' does not")
    left_out = sum(image.split == "test" for image in images) if has_splits else 0
    if has_splits:
        images = [image for image in images if image.split != "test"]
        if val_fraction is not None and any(image.split == "val" for image in images):
            raise DataError("the sources have a validation split already: leave out --val-fraction")
    classes, label_of = _labels(images, names)
    rows = [image for image in images if image.found.place[0] == "parquet"]  # stay in order: row groups are read whole
    files = [image for image in images if image.found.place[0] != "parquet"]
    images = sorted(files, key=lambda image: image.prefix + image.path) + rows
    splits: dict[str, list[Entry]] = {"train": [], "val": []}
    lines, seen = [], {}
    for image in images:
        split = (image.split if has_splits else None) or "train"
        if val_fraction is not None and _hash_share(image.path) < val_fraction:
            split = "val"
        shard_split = f"{split}/" if has_splits and image.found.label is not None else ""
        name = _unique(shard_split + image.prefix + image.path, seen)
        entry = Entry(name, label_of[image.label], image.found.place)
        splits[split].append(entry)
        lines.append(f"{split}\t{name}\t{entry.label}\t{image.found.size}\t{image.found.check}\n")
    if not splits["train"]:
        raise DataError("no image is left for training: lower --val-fraction or add images")
    ordered = lines if rows else sorted(lines)
    digest = hashlib.sha256("".join(ordered).encode("utf-8", "surrogateescape"))
    splits = {split: entries for split, entries in splits.items() if entries}
    return Listing(splits, classes, digest.hexdigest(), dict(ignored.most_common()), left_out)


def _labels(images: list[_Image], names: list[str] | None) -> tuple[list[str], dict[int | str, int]]:
    """Class names by label, and the label of every class or number found."""
    found = {image.label for image in images}
    numbers = {label for label in found if isinstance(label, int)}
    if not numbers:
        classes = sorted(found)
        return classes, {name: label for label, name in enumerate(classes)}
    if numbers != found:
        raise DataError("some sources label their images by number and some by name")
    if names is None:
        if max(numbers) >= MAX_CLASSES:
            raise DataError(f"label {max(numbers)} would mean more than {MAX_CLASSES} classes: number them from 0")
        names = [str(number) for number in range(max(numbers) + 1)]
    return names, {number: number for number in numbers}


def _hash_share(path: str) -> float:
    """A number in [0,1) that depends on the path alone."""
    return int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def _unique(name: str, seen: dict[str, int]) -> str:
    """``name``, or the first of ``name-2``, ``name-3``, ... that is free (keys repeat between shards)."""
    pure, candidate = PurePosixPath(name), name
    while candidate in seen:
        seen[name] += 1
        candidate = str(pure.with_name(f"{pure.stem}-{seen[name]}{pure.suffix}"))
    seen[candidate] = 1
    return candidate
