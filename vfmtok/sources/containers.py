"""The images of every container: those of folders and archives, the samples of shards, the rows of tables."""

import itertools
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vfmtok.errors import DataError
from vfmtok.sources import parquet, webdataset
from vfmtok.sources.archives import walk_tar, walk_zip
from vfmtok.sources.class_folders import IMAGE, Image, sort_in, split_folders
from vfmtok.sources.files import FOUND, Found, is_image, kind_of_ignored
from vfmtok.sources.folders import stem_of
from vfmtok.sources.given import Container, Given, look_at
from vfmtok.sources.packed import Packed, repeated
from vfmtok.sources.scratch import Scratch
from vfmtok.sources.splits import SplitNames
from vfmtok.sources.webdataset import Keys


@dataclass
class Part:
    """What one container holds."""

    container: Container
    what: str  # what it was taken for
    images: Packed[Image]
    labels_from: str | None = None  # a member or column; None: folders name the classes, or nothing does
    ignored: Counter[str] = field(default_factory=Counter)
    names: list[str] | None = None  # of the classes, by label, where a table says them
    names_of_numbers: dict[int, str] = field(default_factory=dict)  # the same, where samples say them
    known_as: dict[str, str] = field(default_factory=dict)  # of some files the name that their metadata knows
    is_unlabelled: bool = False  # samples or rows that could have had labels
    splits: Counter[str | None] = field(default_factory=Counter)  # how many images are in which

    @property
    def name(self) -> str:
        return str(self.container.path)


def read_parts(given: Given, scratch: Scratch, keys: Keys, names: SplitNames, labelled: bool = True) -> list[Part]:
    """Every container's images, sorted into splits and classes as far as it says them.

    Args:
        labelled: False: nobody asks for labels.

    Raises:
        DataError: one can't be read, or what it says is ambiguous.
    """
    splits = splits_of(given, names)
    prefixes = _prefixes([container.path for container in given.containers])
    source_names = list(dict.fromkeys(container.source for container in given.containers))
    of_source = dict(zip(source_names, _prefixes(source_names), strict=True))
    parts = []
    for index, container in enumerate(given.containers):
        prefix = prefixes[index], of_source[container.source]
        is_left_out = splits[index] == "test" and len(set(splits)) > 1  # it need not have labels
        part = _read(container, scratch, keys, names, labelled and not is_left_out, prefix, splits[index], index)
        part.splits = Counter(image.split for image in part.images)
        container.images, container.others = Packed(FOUND), Packed(FOUND)  # they are in the part
        parts.append(part)
    return parts


def find_images(
    sources: list[str], scratch: Scratch, keys: Keys = webdataset.NO_KEYS
) -> tuple[Packed[Found], set[str]]:
    """Every image of the sources, whatever its label, container after container; and the splits that they are in.
    Sizes may be missing.

    Of samples it is the one image of each.

    Raises:
        DataError: a source is missing, unreadable or ambiguous.
    """
    given = look_at(sources, sizes=False)
    found = Packed(FOUND)
    for container in given.containers:
        if container.kind == "table":
            found.extend(parquet.open_table(container.path, keys).rows(labelled=False))
            continue
        files, images = _files(container, scratch)
        shard = webdataset.read_shard(str(container.path), files, keys, False, container.kind == "folder")
        found.extend(images if shard is None else shard.images)
    names = SplitNames()
    if len(given.containers) > 1:
        return found, {split for split in splits_of(given, names) if split}
    return found, set((split_folders(found, names) or {}).values())


def _read(
    container: Container,
    scratch: Scratch,
    keys: Keys,
    names: SplitNames,
    labelled: bool,
    prefix: tuple[str, str],
    split: str | None,
    index: int,
) -> Part:
    if container.kind == "table":
        return _read_table(container, keys, labelled, prefix[1], split, index)
    files, images = _files(container, scratch)
    is_folder = container.kind == "folder"
    shard = webdataset.read_shard(str(container.path), files, keys, labelled, is_folder)
    if shard is None:
        sorted_in, strays = sort_in(str(container.path), images, is_folder, prefix[0], split, names, index)
        ignored = _kinds_of_others(files, images) if len(files) > len(images) else Counter()
        return Part(
            container, "images in folders" if is_folder else "an archive of images", sorted_in, None, ignored + strays
        )
    others = Counter(kind_of_ignored(found.path) for found in files if webdataset.split_key(found.path) is None)
    ignored = shard.left_out + others
    if shard.labels_from is None:
        found = Packed(IMAGE, (Image(prefix[1], image.path, split, None, image, index) for image in shard.images))
        return Part(container, "samples without labels", found, None, ignored, is_unlabelled=True)
    found = Packed(IMAGE, (_labelled(container.path, image, None, split, index) for image in shard.images))
    what = f"samples, labels from .{shard.labels_from}"
    known_as = {PurePosixPath(path).name: name for path, name in shard.files.items()}
    return Part(container, what, found, shard.labels_from, ignored, None, shard.names, known_as)


def _read_table(container: Container, keys: Keys, labelled: bool, prefix: str, split: str | None, index: int) -> Part:
    table = parquet.open_table(container.path, keys)
    ignored = Counter({f"column '{name}'": 1 for name in table.unused})
    if table.label is None or not labelled:
        rows = table.rows(labelled=False)
        found = Packed(IMAGE, (Image(prefix, row.path, split, None, row, index) for row in rows))
        what = f"rows, images from '{table.image}'"
        return Part(container, what, found, None, ignored, is_unlabelled=True)
    found = Packed(IMAGE, (_labelled(container.path, row, table.names, split, index) for row in table.rows()))
    what = f"rows, images from '{table.image}', labels from '{table.label}'"
    return Part(container, what, found, table.label, ignored, table.names)


def _files(container: Container, scratch: Scratch) -> tuple[Packed[Found], Packed[Found]]:
    """All files of a folder or archive, and those that are images. A file that came twice is the later one."""
    if container.kind == "folder":
        files = Packed(FOUND, container.others)
        files.extend(container.images)
        return files, container.images
    path = container.path
    is_zip = path.suffix.lower() == ".zip" or (not path.suffix and zipfile.is_zipfile(path))
    files = walk_zip(path) if is_zip else walk_tar(path, scratch)
    return files, _last_of_each(files.where(is_image))


def _last_of_each(images: Packed[Found]) -> Packed[Found]:
    """Without those that come again under the same path later."""
    twice = repeated(found.path for found in images)
    if not twice:
        return images
    last = {found.path: place for place, found in enumerate(images) if hash(found.path) in twice}
    kept = (found for place, found in enumerate(images) if last.get(found.path, place) == place)
    return Packed(FOUND, kept)


def _kinds_of_others(files: Packed[Found], images: Packed[Found]) -> Counter[str]:
    """How many files of each kind there are beside the images, which are some of them in the same order."""
    kinds: Counter[str] = Counter()
    waiting = iter(images)
    image = next(waiting, None)
    for found in files:
        if image is not None and found.path == image.path:
            image = next(waiting, None)
        else:
            kinds[kind_of_ignored(found.path)] += 1
    return kinds


def _labelled(shard: Path, found: Found, names: list[str] | None, split: str | None, index: int) -> Image:
    """An image of a shard or table: named by its class and key."""
    label = found.label
    if label is None and split != "test":
        raise DataError(f"{shard}: '{found.path}' has no label")
    if label is None or (isinstance(label, int) and (label < 0 or (names is not None and label >= len(names)))):
        if split != "test":  # unlabelled test sets hold -1
            outside = f", outside the {len(names)} class names" if names is not None else ": classes count from 0"
            raise DataError(f"{shard}: '{found.path}' has label {label}{outside}")
        label = 0
    class_name = names[label] if names is not None and isinstance(label, int) else str(label)
    folder = class_name.replace("/", "_") + "/"
    path = found.path if found.path.startswith(folder) else folder + PurePosixPath(found.path).name
    return Image("", path, split, label, found, index)


# --------------------------------------------------------------------------------------
# Names and splits of containers
# --------------------------------------------------------------------------------------


def _prefixes(paths: list[Path]) -> list[str]:
    """What names of each begin with: nothing for one alone, its own name among several."""
    if len(paths) == 1:
        return [""]
    stems = [stem_of(path) for path in paths]
    seen: Counter[str] = Counter()
    prefixes = []
    for stem in stems:
        prefixes.append(f"{stem}-{seen[stem] + 1}/" if seen[stem] else f"{stem}/")
        seen[stem] += 1
    return prefixes


def splits_of(given: Given, names: SplitNames) -> list[str | None]:
    """The split that each container is in by its own name, or by the folders between it and what the user gave."""
    folders = {c.path: stem_of(c.path) for c in given.containers if not c.inside and c.kind == "folder"}
    own = names.of_folders(folders.values(), "the sources") or {} if folders else {}
    found: list[str | None] = []
    for container in given.containers:
        if container.path in folders:
            split = own.get(folders[container.path], names.of_folder(folders[container.path]))
        else:
            above = reversed(PurePosixPath(container.inside).parts[:-1])
            candidates = itertools.chain([names.of_file(stem_of(container.path))], map(names.of_folder, above))
            split = next(filter(None, candidates), None)
        found.append(split)
    if len(found) == 1 and given.containers[0].kind == "folder":
        return [None]  # its own folders say it
    return found


def configurations(containers: Iterable[Container], names: SplitNames) -> list[str]:
    """The folders of tables that are the configurations of one data set, such as imagenette's 160px and 320px."""
    folders = (PurePosixPath(c.inside).parts[:-1] for c in containers if c.kind == "table" and c.inside)
    return sorted({"/".join(part for part in parts if not names.of_folder(part)) for parts in folders})
