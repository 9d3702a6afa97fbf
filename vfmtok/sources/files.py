"""Files inside a folder, zip, tar or parquet file: what they may be, and reading one by its place in any process.

A place is a tuple: its kind and whatever that kind needs. The walks that find files are folders.py, archives.py and
parquet.py.
"""

import mimetypes
import os
import re
import struct
import zipfile
import zlib
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from vfmtok.errors import DataError
from vfmtok.sources.packed import Layout

HEAD = 32  # bytes that tell an image from another file

_MIME = mimetypes.MimeTypes()  # Python's own table, not the machine's
_IMAGES = {
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".ico", ".j2c", ".j2k", ".jfif",
    ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".jxl", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip
_NEVER_IMAGES = {
    ".svg", ".yaml", ".yml", ".toml", ".log", ".lock", ".md", ".npy", ".npz", ".mat", ".pkl", ".db", ".ini", ".md5",
    ".sha256", ".jsonl", ".cls", ".parquet", ".arrow", ".dvc",
}  # fmt: skip
_NOT_THE_USERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"}
_IMAGE_HEADS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP|P[1-7]\s|\0\0\0\x0cjP  |\xff\x4f\xff\x51"
    rb"|.{4}ftyp(avi[fs]|hei[cmsx]|hev[cx]|mif1|msf1)|\0\0\x01\0[\x01-\xff]\0|\xff\x0a|\0\0\0\x0cJXL ",
    re.DOTALL,
)


class Found(NamedTuple):
    """One file of a source."""

    path: str  # inside the source, with forward slashes
    size: int  # bytes; 0 where the listing does not say, and for files that are no images by their name
    check: str  # what the listing says of the content: a zip's CRC, the shard of a parquet row, or ""
    place: tuple  # argument of ``read``: kind first
    label: int | str | None = None  # None: no label belongs to the file itself


FOUND = Layout(tuple, Found._make)


def is_image(found: Found) -> bool:
    """Whether a file is taken for an image: by its name or, where that says nothing, by its first bytes.

    Hidden files, those that systems leave behind, and well-known other types are not.
    """
    by_name = image_by_name(found.path)
    if by_name is not None:
        return by_name
    try:
        return found.place[0] != "unusable" and bool(_IMAGE_HEADS.match(head(found.place)))
    except (CorruptFile, DataError):
        return False


def image_by_name(path: str) -> bool | None:
    """Whether a path is an image's; None: an unknown or missing extension does not tell."""
    if is_hidden(path):
        return False
    _, dot, suffix = path.rpartition(".")
    return _by_suffix(suffix if dot and "/" not in suffix else "")


@lru_cache(maxsize=1024)
def _by_suffix(name: str) -> bool | None:
    suffix = f".{name}".lower() if name else ""
    if suffix in _IMAGES:
        return True
    mime = _MIME.guess_type("file" + suffix, strict=False)[0]
    if suffix in _NEVER_IMAGES or (mime is not None and not mime.startswith("image/")):
        return False
    return None if mime is None else True


def suffix_of(path: str) -> str:
    """The last extension in lower case with its dot, or ""."""
    stem, dot, suffix = path[path.rfind("/") + 1 :].rpartition(".")
    return f".{suffix}".lower() if dot and stem.strip(".") and suffix else ""


def is_hidden(path: str) -> bool:
    """Whether a part of the path begins with a dot, or is a folder of the system's: no file of the user's."""
    folder, _, name = path.rpartition("/")
    return _is_hidden_part(name) or (folder != "" and _is_hidden_folder(folder))


@lru_cache(maxsize=1024)  # thousands of images follow each other in a folder
def _is_hidden_folder(path: str) -> bool:
    return any(map(_is_hidden_part, path.split("/")))


def _is_hidden_part(name: str) -> bool:
    return name[:1] == "." or name in _NOT_THE_USERS


def kind_of_ignored(path: str) -> str:
    """What an ignored file is counted as: its extension, or its name where it has none."""
    return suffix_of(path) or path[path.rfind("/") + 1 :]


# --------------------------------------------------------------------------------------
# Reading by place
# --------------------------------------------------------------------------------------


class CorruptFile(Exception):
    """This one file can't be read: damaged in its container, no regular file, or not ours to read."""


def read(place: tuple) -> bytes:
    """The bytes at a place.

    Raises:
        CorruptFile: this file is damaged inside its container, or none that can be read.
        DataError: the source can't be read now; trying again later may help.
    """
    kind, file, *rest = place
    try:
        return _READERS[kind](file, *rest)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or file}: {error.strerror or error}") from None


def head(place: tuple) -> bytes:
    """The first bytes at a place, at most ``HEAD`` of what is cheap to read alone. Raises as ``read``."""
    kind, *rest = place
    try:
        if kind == "file":
            with open(os.path.join(*rest), "rb") as opened:
                return opened.read(HEAD)
        if kind == "tar":
            file, offset, size = rest
            with open(file, "rb") as opened:
                return _read_span(opened, offset, min(HEAD, size))
    except OSError as error:
        raise CorruptFile(f"cannot be read: {error.strerror}") from None
    return read(place)[:HEAD]


def _read_file(*path: str) -> bytes:
    try:
        with open(os.path.join(*path), "rb") as opened:
            return opened.read()
    except PermissionError as error:
        raise CorruptFile(f"cannot be read: {error.strerror}") from None


def _read_unusable(file: str, reason: str) -> bytes:
    raise CorruptFile(reason)


def _read_tar(file: str, offset: int, size: int) -> bytes:
    with open(file, "rb") as opened:
        return _read_span(opened, offset, size)


def _read_sparse(file: str, offset: int, size: int, parts: tuple[tuple[int, int], ...]) -> bytes:
    """A sparse member of a tar: only the parts, (start, size) each, are stored; zeros lie between them."""
    content = bytearray(size)
    with open(file, "rb") as opened:
        for start, length in parts:
            content[start : start + length] = _read_span(opened, offset, length)
            offset += length
    return bytes(content)


def _read_zip(file: str, offset: int, size: int, method: int, crc: int) -> bytes:
    with open(file, "rb") as opened:
        header = _read_span(opened, offset, 30)
        name_size, extra_size = struct.unpack_from("<HH", header, 26)
        content = _read_span(opened, offset + 30 + name_size + extra_size, size)
    try:
        content = zlib.decompress(content, wbits=-15) if method == zipfile.ZIP_DEFLATED else content
    except zlib.error as error:
        raise CorruptFile(f"damaged in the zip: {error}") from None
    if zlib.crc32(content) != crc:
        raise CorruptFile("damaged in the zip: its checksum does not match")
    return content


def _read_parquet(file: str, row_group: int, row: int, column: str) -> bytes:
    from vfmtok.sources.parquet import read_row

    return read_row(file, row_group, row, column)


_READERS = {
    "file": _read_file,
    "unusable": _read_unusable,
    "tar": _read_tar,
    "sparse": _read_sparse,
    "zip": _read_zip,
    "parquet": _read_parquet,
}


def _read_span(opened: BinaryIO, offset: int, size: int) -> bytes:
    opened.seek(offset)
    content = opened.read(size)
    if len(content) != size:
        raise DataError(f"{opened.name} is shorter than its listing says")
    return content
