"""Splits and classes that folders name: split/class/image, class/split/image, class/image, or images alone."""

from collections import Counter
from typing import NamedTuple

from vfmtok.errors import DataError
from vfmtok.sources.files import Found
from vfmtok.sources.splits import SplitNames


class Image(NamedTuple):
    """A found image while its name, class and split are worked out."""

    prefix: str  # source and split folders, "" or ending in "/"
    path: str  # class folder and file name
    split: str | None  # "train", "val", "test"
    label: int | str | None  # None: nothing at its place says its class
    found: Found
    container: int  # where it was found


def sort_in(
    where: str, images: list[Found], is_folder: bool, prefix: str, split: str | None, names: SplitNames, container: int
) -> tuple[list[Image], Counter[str]]:
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
    images, start, wrapped, strays = _unwrap(images, is_folder, names)
    split = wrapped or split
    top = {_part(found.path, start) for found in images}
    splits = names.of_folders(top, where) if top and None not in top else None
    if splits is None:
        second = _splits_in_classes(images, start, names)
        found = []
        for x in images:
            own = second.get(_part(x.path, _next(x.path, start)), split)
            found.append(_image(x, prefix, start, own, container))
    else:
        found = []
        for x in images:
            after = _next(x.path, start)
            head = prefix + x.path[start:after]
            found.append(_image(x, head, after, splits[x.path[start : after - 1]], container))
    kept, more = _without_strays(where, found)
    return kept, strays + more


def split_folders(images: list[Found], names: SplitNames) -> dict[str, str] | None:
    """The folders that sort all images into splits, or None. Raises DataError if it is not clear."""
    images, start, _, _ = _unwrap(images, True, names)
    top = {_part(found.path, start) for found in images}
    return names.of_folders(top, "the images") if top and None not in top else None


def _image(found: Found, prefix: str, start: int, split: str | None, container: int) -> Image:
    return Image(prefix, found.path[start:], split, _part(found.path, start), found, container)


def _part(path: str, start: int) -> str | None:
    """The folder that begins at ``start``; None: the file does."""
    end = path.find("/", start)
    return None if end < 0 else path[start:end]


def _next(path: str, start: int) -> int:
    return path.find("/", start) + 1


def _unwrap(
    images: list[Found], is_folder: bool, names: SplitNames
) -> tuple[list[Found], int, str | None, Counter[str]]:
    """Where the paths begin below the one folder that all lie in, or the one in that; and the split it is, if so.

    A folder's own "train" stays, as it is one of the splits; an archive's was packed as its content. The few images
    beside the folders, which would hide what these are, are left out and counted.
    """
    start, strays = 0, Counter()
    images = _without_loose(images, start, strays)
    while images:
        top = _part(images[0].path, start)
        if top is None or any(not found.path.startswith(f"{top}/", start) for found in images):
            break
        split, below = names.of_folder(top), start + len(top) + 1
        if split and is_folder:
            break
        if any("/" not in found.path[below:] for found in images):
            inner = {part for found in images if (part := _part(found.path, below))}
            if len(set((names.of_folders(inner, top) or {}).values()) if inner else ()) < 2:
                break  # a class of images and folders
            fewer = _without_loose(images, below, strays)
            if len(fewer) == len(images):
                break
            images = fewer
        start = below
        if split:
            return images, start, split, strays
    return images, start, None, strays


def _without_loose(images: list[Found], start: int, strays: Counter[str]) -> list[Found]:
    """Without the images beside folders, if they are few."""
    loose = [found for found in images if found.path.find("/", start) < 0]
    if not loose or 2 * len(loose) > len(images):
        return images
    strays[f"images beside the folders, such as {loose[0].path}"] += len(loose)
    return [found for found in images if found.path.find("/", start) >= 0]


def _splits_in_classes(images: list[Found], start: int, names: SplitNames) -> dict[str | None, str]:
    """Of class/split/image the splits by the second folder's name; else nothing."""
    second: set[str | None] = set()
    for found in images:
        after = _next(found.path, start)
        second.add(_part(found.path, after) if after else None)
        if None in second or names.of_folder(next(iter(second))) is None:
            return {}
    splits = {name: split for name in second if (split := names.of_folder(name))}
    return splits if len(splits) == len(second) and len(set(splits.values())) > 1 else {}


def _without_strays(where: str, images: list[Image]) -> tuple[list[Image], Counter[str]]:
    """Without the few images that lie beside the class folders of their split."""
    kept, strays = [], Counter()
    for split in sorted({image.split for image in images}, key=str):
        own = [image for image in images if image.split == split]
        flat = [image for image in own if image.label is None]
        if flat and len(flat) < len(own) and split != "test":
            if 2 * len(flat) > len(own):
                raise DataError(
                    f"{where}: {len(flat)} images lie beside the class folders, such as {flat[0].path}: sort them in"
                )
            strays[f"images beside the class folders, such as {flat[0].path}"] += len(flat)
            own = [image for image in own if image.label is not None]
        kept += own
    return kept, strays
