"""What a user gave, as containers to be listed: a folder of images, or archives and tables one by one.

A folder is what most of its bytes are: images, archives (tars and zips) or parquet files of images; the rest is
counted as strays. Every container keeps the path it was given by, for splits and classes are read from that.
"""

import glob
import itertools
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from vfmtok.errors import DataError
from vfmtok.sources import imagenet, label_files, parquet
from vfmtok.sources.archives import ZSTANDARD
from vfmtok.sources.files import FOUND, Found, is_hidden, is_image, kind_of_ignored
from vfmtok.sources.folders import is_archive, is_table, walk_folder
from vfmtok.sources.packed import Packed

SAMPLE = Path(__file__).parents[1] / "data/samples/emoji64.zip"
NEAR = 0.8  # two kinds of files whose bytes differ by less are both meant, or one of them twice
KINDS = {"folder": "a folder of images", "archive": "archives", "table": "parquet or Arrow files"}


@dataclass
class Container:
    """Something that holds images."""

    path: Path
    kind: str  # "folder", "archive" or "table"
    source: Path  # what the user gave: the same, or a folder that the container lies in
    inside: str = ""  # where it lies in that folder
    images: Packed[Found] = field(default_factory=partial(Packed, FOUND))  # of a folder: it was walked to know its kind
    others: Packed[Found] = field(default_factory=partial(Packed, FOUND))  # its other files


@dataclass
class Given:
    """Everything that a command's sources are."""

    containers: list[Container] = field(default_factory=list)
    label_files: list[Path] = field(default_factory=list)  # found beside the images, or named
    named: list[Path] = field(default_factory=list)  # those of them that are among the sources
    strays: Counter[str] = field(default_factory=Counter)
    tables: list[str] = field(default_factory=list)  # files beside images of a folder that may hold their labels


def look_at(sources: Sequence[str], sizes: bool = True) -> Given:
    """What the sources are: folders, archives, parquet files, patterns such as ``shard-{000..127}.tar``, ``sample``.

    Args:
        sizes: find out the sizes of files in folders, even where they are not needed to tell what a folder is.

    Raises:
        DataError: one is missing, unreadable or nothing of these.
    """
    given = Given()
    paths = list(dict.fromkeys(path for source in sources for path in _expand(source)))  # nested braces repeat some
    for path in paths:
        if imagenet.is_devkit(path) or (path.is_file() and path.suffix.lower() in (*label_files.TABLES, ".txt")):
            given.label_files.append(path)
            given.named.append(path)
        elif path.is_dir():
            _look_into(_without_cache(path), path, given, sizes)
        else:
            given.containers.append(Container(path, _kind_of_file(path), path))
    return given


def _expand(source: str) -> list[Path]:
    path = Path(source)
    if source == "sample":
        return [SAMPLE]
    if not os.path.lexists(path):
        if "://" in source:
            raise DataError(f"{source} is a URL: fetch it first (only training reads shards behind URLs as they are)")
        if "{" in source:
            return [path for text in expand_braces(source) for path in _expand(text)]
        found = sorted(glob.glob(source)) if set("*?[") & set(source) else []
        if not found:
            raise DataError(f"no such source: {source}")
        return list(map(Path, found))
    if not path.exists():
        raise DataError(f"{source} is a broken link")
    return [path]


def expand_braces(pattern: str) -> list[str]:
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
    return [text for c in choices for text in expand_braces(pattern[: match.start()] + c + pattern[match.end() :])]


def _kind_of_file(path: Path) -> str:
    """Of an archive or table, by its name or, where that says nothing, by its content. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path} is not a regular file")  # opening a pipe would wait for its writer
    if is_archive(path.name):
        return "table" if is_table(path.name) else "archive"
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        if start == b"PAR1":
            return "table"
        if zipfile.is_zipfile(path) or tarfile.is_tarfile(path) or start == ZSTANDARD:
            return "archive"
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    raise DataError(f"{path} is no folder, .zip, .tar, .tar.gz, .tgz, .tar.zst, .parquet or .arrow")


def _without_cache(folder: Path) -> Path:
    """Of a repository in the Hub's cache the folder of the snapshot, which links to the blobs. Raises DataError."""
    if not all((folder / name).is_dir() for name in ("blobs", "snapshots")):
        return folder
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    main = folder / "refs/main"
    wanted = main.read_text().strip() if main.is_file() else None
    found = [path for path in snapshots if path.name == wanted] or snapshots
    if len(found) != 1:
        raise DataError(f"{folder} holds {len(found)} snapshots of a repository: name one of {folder / 'snapshots'}")
    return found[0]


def _look_into(folder: Path, source: Path, given: Given, sizes: bool) -> None:
    """Add a folder as one container of images or as those that lie in it. Raises DataError."""
    walked = _walk(folder, sizes)
    if not sizes and sum(map(bool, (walked.images, walked.archives, walked.tables))) > 1:
        walked = _walk(folder, True)  # what most of the bytes are decides
    given.label_files += [folder / kit for kit in sorted(walked.kits)]
    given.label_files += [folder / found.path for found in walked.named]
    given.tables += [str(folder / found.path) for found in walked.label_tables]
    kinds = {"folder": walked.images, "archive": walked.archives, "table": walked.tables}
    if kinds["table"] and (kinds["folder"] or kinds["archive"]) and parquet.is_installed():
        kinds["table"] = [found for found in kinds["table"] if parquet.holds_images(folder / found.path)]
    kind = _majority(folder, kinds)
    if kind == "folder":
        given.containers.append(Container(folder, "folder", source, "", walked.images, walked.others))
        return
    used = {found.path for found in (*kinds[kind], *walked.named)}
    for found in sorted(kinds[kind], key=lambda found: found.path):
        if not (folder / found.path).is_file():
            raise DataError(f"{folder / found.path} is not a regular file")
        given.containers.append(Container(folder / found.path, kind, source, found.path))
    files = itertools.chain(walked.images, walked.others)
    given.strays.update(kind_of_ignored(found.path) for found in files if found.path not in used)


@dataclass
class _Walked:
    """What lies in a folder, without ImageNet's devkits."""

    kits: set[str] = field(default_factory=set)  # the devkits' names
    images: Packed[Found] = field(default_factory=partial(Packed, FOUND))
    others: Packed[Found] = field(default_factory=partial(Packed, FOUND))  # those that follow are among them
    archives: list[Found] = field(default_factory=list)
    tables: list[Found] = field(default_factory=list)
    named: list[Found] = field(default_factory=list)  # files of labels, by convention
    label_tables: list[Found] = field(default_factory=list)  # others that may be such


def _walk(folder: Path, sizes: bool) -> _Walked:
    """Raises DataError."""
    walked = _Walked()
    is_kit = lru_cache(lambda top: imagenet.is_devkit(Path(top)))
    for found in walk_folder(folder, sizes):
        top = found.path.split("/", 1)[0]
        if is_kit(top):
            walked.kits.add(top)
            continue
        if is_image(found):
            walked.images.append(found)
            continue
        walked.others.append(found)
        if is_archive(found.path):
            (walked.tables if is_table(found.path) else walked.archives).append(found)
        elif label_files.BY_CONVENTION.search(found.path):
            if not is_hidden(found.path):
                walked.named.append(found)
        elif "/" not in found.path and found.path.lower().endswith(label_files.TABLES):
            walked.label_tables.append(found)
    return walked


def _majority(folder: Path, kinds: dict[str, Sequence[Found]]) -> str:
    """What most of the bytes are. Raises DataError where two kinds come near to each other."""
    sizes = {kind: sum(found.size for found in files) for kind, files in kinds.items() if files}
    if not sizes:
        return "folder"
    first, *rest = sorted(sizes, key=lambda kind: (sizes[kind], kind == "folder"), reverse=True)
    if rest and sizes[rest[0]] > NEAR * sizes[first] > 0:  # the same files packed and unpacked, most likely
        names = " and ".join(f"{KINDS[kind]} (such as {kinds[kind][0].path})" for kind in (first, rest[0]))
        raise DataError(f"{folder} holds both {names}: name the files or the folder in it that are meant")
    return first
