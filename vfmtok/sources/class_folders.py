"""Splits and classes that folders name: split/class/image, class/split/image, class/image, or images alone."""

from collections import Counter
from typing import NamedTuple

from vfmtok.errors import DataError
from vfmtok.sources.files import Found
from vfmtok.sources.packed import Layout, Packed
from vfmtok.sources.splits import SplitNames

_NO_CLASSES = {"image", "images", "img", "imgs", "jpegimages", "photos", "pictures"}


class Image(NamedTuple):
    """A found image while its name, class and split are worked out."""

    prefix: str  # source and split folders, "" or ending in "/"
    path: str  # class folder and file name
    split: str | None  # "train", "val", "test"
    label: int | str | None  # None: nothing at its place says its class
    found: Found
    container: int  # where it was found


def _plain(image: Image) -> tuple:
    return image.prefix, image.path, image.split, image.label, tuple(image.found), image.container


def _image_of(plain: tuple) -> Image:
    prefix, path, split, label, found, container = plain
    return Image(prefix, path, split, label, Found(*found), container)


IMAGE = Layout(_plain, _image_of)


def sort_in(
    where: str,
    images: Packed[Found],
    is_folder: bool,
    prefix: str,
    split: str | None,
    names: SplitNames,
    container: int,
) -> tuple[Packed[Image], Counter[str]]:
    """Images with the split and the class that their folders name, and what was left out.

    Folders that hold nothing but one folder are looked through. Images beside class folders are left out if they are
    few, such as a preview.

    Args:
        where: what messages call the source.
        prefix: what the images' names begin with.
        split: of images that no folder sorts into one.

    Raises:
        DataError: it is not clear which folders are splits, or many images lie beside class folders.
    """
    images, start, wrapped, tops, strays = _unwrap(images, is_folder, names)
    split = wrapped or split
    splits = names.of_folders(tops, where) if tops and None not in tops else None
    found = Packed(IMAGE)
    if splits is None:
        second = _splits_in_classes(images, start, names)
        if not second:
            _refuse_some_splits(where, images, start, names)
        for x in images:
            own = second.get(_part(x.path, _next(x.path, start)), split) if second else split
            found.append(_image(x, prefix, start, own, container))
    else:
        wrappers = _wrappers(images, start)
        for x in images:
            after = _next(x.path, start)
            folder = x.path[start : after - 1]
            after += wrappers.get(folder, 0)
            found.append(_image(x, prefix + x.path[start:after], after, splits[folder], container))
    kept, more = _without_strays(where, found)
    return kept, strays + more


def split_folders(images: Packed[Found], names: SplitNames) -> dict[str, str] | None:
    """The folders that sort all images into splits, or None. Raises DataError if it is not clear."""
    tops = _unwrap(images, True, names)[3]
    return names.of_folders(tops, "the images") if tops and None not in tops else None


def _image(found: Found, prefix: str, start: int, split: str | None, container: int) -> Image:
    return Image(prefix, found.path[start:], split, _part(found.path, start), found, container)


def _part(path: str, start: int) -> str | None:
    """The folder that begins at ``start``; None: the file does."""
    end = path.find("/", start)
    return None if end < 0 else path[start:end]


def _next(path: str, start: int) -> int:
    return path.find("/", start) + 1


def _unwrap(
    images: Packed[Found], is_folder: bool, names: SplitNames
) -> tuple[Packed[Found], int, str | None, set[str | None], Counter[str]]:
    """Where the paths begin below the one folder that all lie in, or the one in that; the split it is, if so; and the
    folders there (None: images beside them).

    A folder's own "train" stays, as it is one of the splits; an archive's was packed as its content. The few images
    beside the folders, which would hide what these are, are left out and counted.
    """
    start, strays = 0, Counter()
    images, tops = _without_loose(images, start, strays)
    while len(tops) == 1 and None not in tops:
        top = next(iter(tops))
        split, below = names.of_folder(top), start + len(top) + 1
        if split and is_folder:
            break
        fewer, inner = _without_loose(images, below, more := Counter())
        if None in inner or more:
            folders = inner - {None}
            if len(set((names.of_folders(folders, top) or {}).values()) if folders else ()) < 2 or None in inner:
                break  # a class of images and folders
        images, start, tops, strays = fewer, below, inner, strays + more
        if split:
            return images, start, split, tops, strays
    return images, start, None, tops, strays


def _without_loose(images: Packed[Found], start: int, strays: Counter[str]) -> tuple[Packed[Found], set[str | None]]:
    """Without the images beside folders, if they are few; and the folders."""
    tops = Counter(_part(found.path, start) for found in images)
    loose = tops[None]
    if not loose or 2 * loose > len(images):
        return images, {top for top in tops if tops[top]}
    first = next(found.path for found in images if found.path.find("/", start) < 0)
    strays[f"images beside the folders, such as {first}"] += loose
    return images.where(lambda found: found.path.find("/", start) >= 0), tops.keys() - {None}


def _wrappers(images: Packed[Found], start: int) -> dict[str, int]:
    """Of split folders the length of the folder in each that is no class, as in train/images/cat/1.png.

    That is one that all splits have, with nothing beside it but folders in it; or, beside a split of class folders, the
    "images" of one that has no classes, as Tiny ImageNet's validation.
    """
    inner: dict[str, set[str | None]] = {}
    deeper = True
    for found in images:
        after = _next(found.path, start)
        own = _part(found.path, after)
        inner.setdefault(found.path[start : after - 1], set()).add(own)
        deeper = deeper and own is not None and found.path.find("/", after + len(own) + 1) >= 0
    only = {folder: next(iter(names)) for folder, names in inner.items() if len(names) == 1 and None not in names}
    if deeper and len(only) == len(inner) and len(set(only.values())) == 1:
        return {folder: len(name) + 1 for folder, name in only.items()}
    if all(len(names) < 2 for names in inner.values()):
        return {}
    return {folder: len(name) + 1 for folder, name in only.items() if name.lower() in _NO_CLASSES}


def _refuse_some_splits(where: str, images: Packed[Found], start: int, names: SplitNames) -> None:
    """Raises DataError where splits lie in some of the folders only: as classes they would hide them."""
    splits: dict[str, dict[str, str]] = {}
    for found in images:
        after = _next(found.path, start)
        second = _part(found.path, after) if after else None
        split = names.of_folder(second) if second is not None else None
        if split:
            splits.setdefault(found.path[start : after - 1], {})[split] = second
    mixed = next((folder for folder in splits if len(splits[folder]) > 1), None)
    if mixed is not None:
        found = " and ".join(sorted(splits[mixed].values()))
        raise DataError(
            f"{where}: '{mixed}' holds {found}, and other images lie beside these: name the folder that is meant, or "
            "--split none if all are classes"
        )


def _splits_in_classes(images: Packed[Found], start: int, names: SplitNames) -> dict[str | None, str]:
    """Of class/split/image the splits by the second folder's name; else nothing."""
    second: set[str | None] = set()
    for found in images:
        after = _next(found.path, start)
        second.add(_part(found.path, after) if after else None)
        if None in second or names.of_folder(next(iter(second))) is None:
            return {}
    splits = {name: split for name in second if (split := names.of_folder(name))}
    return splits if len(splits) == len(second) and len(set(splits.values())) > 1 else {}


def _without_strays(where: str, images: Packed[Image]) -> tuple[Packed[Image], Counter[str]]:
    """Without the few images that lie beside the class folders of their split."""
    strays: Counter[str] = Counter()
    counts = Counter((image.split, image.label is None) for image in images)
    dropped = set()
    for split in sorted({split for split, _ in counts}, key=str):
        flat, own = counts[split, True], counts[split, True] + counts[split, False]
        if flat and flat < own and split != "test":
            first = next(image.path for image in images if image.split == split and image.label is None)
            if 2 * flat > own:
                raise DataError(f"{where}: {flat} images lie beside the class folders, such as {first}: sort them in")
            strays[f"images beside the class folders, such as {first}"] += flat
            dropped.add(split)
    if dropped:
        images = images.where(lambda image: image.label is not None or image.split not in dropped)
    return images, strays
