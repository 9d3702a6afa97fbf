"""The one walk over a folder's files, which all commands share."""

import os
import re
import stat
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from vfmtok.errors import DataError
from vfmtok.sources.files import Found, image_by_name, is_hidden

TABLES = (".parquet", ".arrow")
ARCHIVES = (
    ".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", *TABLES,
)  # fmt: skip


def is_archive(path: str) -> bool:
    """Whether a file may hold others, by its name: an archive or a table."""
    return path.lower().endswith(ARCHIVES) and not is_hidden(path)


def is_table(path: str) -> bool:
    return path.lower().endswith(TABLES)


def walk_folder(folder: str | Path, sizes: bool = True) -> Iterator[Found]:
    """Every file below a folder, by name, under the path that leads there: where links lead to does not matter.

    Links to folders are followed, except to a folder that the link itself lies in. Hidden folders are one entry each
    and not entered. A broken link, pipe, socket or device with the name of an image is listed as well, at a place
    that can't be read: it is skipped, counted and reported like a damaged image, and not opened, because opening a
    pipe waits for its writer.

    Args:
        sizes: ask for the sizes of images and archives, which costs as much as the rest, and more on network disks.

    Raises:
        DataError: a folder can't be read.
    """
    root = str(folder)
    waiting = [("", root, (_identity(root),))]  # the path inside, the folder, and which folders it lies in
    while waiting:
        inside, current, above = waiting.pop()
        try:
            with os.scandir(current) as opened:
                entries = sorted(opened, key=attrgetter("name"))
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from None
        folders = []
        for entry in entries:
            path = inside + entry.name
            if not _is_folder(entry):
                plain = not sizes and entry.is_file(follow_symlinks=False)
                yield Found(path, 0, "", ("file", root, path)) if plain else _found(root, path, entry)
            elif is_hidden(entry.name):
                yield Found(path, 0, "", ("unusable", entry.path, "a folder"))
            elif not entry.is_symlink():
                folders.append((f"{path}/", entry.path, (*above, (entry.stat().st_dev, entry.inode()))))
            elif (identity := _identity(entry.path)) not in above:
                folders.append((f"{path}/", entry.path, (*above, identity)))
        waiting += reversed(folders)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(folder: str) -> tuple[int, int]:
    try:
        found = os.stat(folder)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from None
    return found.st_dev, found.st_ino


def _found(root: str, path: str, entry: os.DirEntry) -> Found:
    size, unusable = 0, ""
    if image_by_name(path) is not False or is_archive(path):
        size, unusable = _look_at(entry)
    return Found(path, size, "", ("unusable", entry.path, unusable) if unusable else ("file", root, path))


def _look_at(entry: os.DirEntry) -> tuple[int, str]:
    """The size of a regular file and "", or 0 and why it can't be read."""
    try:
        found = entry.stat()
    except OSError as error:
        return 0, f"{'broken link' if entry.is_symlink() else 'cannot be read'}: {error.strerror}"
    if stat.S_ISREG(found.st_mode):
        return found.st_size, ""
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return 0, f"not a regular file but {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}"


def stem_of(path: Path) -> str:
    """A source's name, as it was given, without the extensions of archives."""
    name = os.path.basename(os.path.abspath(path))
    return re.sub(r"(\.zip|\.parquet|\.arrow|\.t(ar|gz|bz2|xz|zst)|\.tar\.\w+)$", "", name, flags=re.I)
