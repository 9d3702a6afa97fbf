"""Files inside a folder, zip or tar: listed once by name and place, read by place in any process."""

import bz2
import gzip
import lzma
import mimetypes
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from vfmtok.data.sources.scratch import Scratch
from vfmtok.errors import DataError

COMPRESSED = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".tbz2": bz2.open, ".xz": lzma.open}
TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".tar.gz", ".tar.bz2", ".tar.xz")

_MIME = mimetypes.MimeTypes()  # Python's own table, not the machine's
_NEVER_IMAGES = {
    ".svg", ".yaml", ".yml", ".toml", ".log", ".lock", ".md", ".npy", ".npz", ".mat", ".pkl", ".db", ".ini", ".md5",
    ".sha256", ".jsonl", ".cls", ".parquet",
}  # fmt: skip


class Found(NamedTuple):
    """One file of a source."""

    path: str  # inside the source, with forward slashes
    size: int  # bytes; 0 where the listing does not say, and for files that are no images by their name
    check: str  # what the listing says of the content: a zip's CRC, the shard of a parquet row, or ""
    place: tuple  # argument of ``read``: kind first
    label: int | str | None = None  # None: the class is told by the folder


def is_candidate(path: str) -> bool:
    """Whether a file may be an image by its name. Hidden files, macOS' shadow files and well-known
    other types are not; an unknown or missing extension is worth a try."""
    pure = PurePosixPath(path)
    return not _is_hidden(pure) and _may_be_image(pure.suffix.lower())


@lru_cache(maxsize=1024)
def _may_be_image(suffix: str) -> bool:
    mime = _MIME.guess_type("file" + suffix, strict=False)[0]
    return suffix not in _NEVER_IMAGES and (mime is None or mime.startswith("image/"))


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def kind_of_ignored(path: str) -> str:
    """What an ignored file is counted as: its extension, or its name where it has none."""
    return PurePosixPath(path).suffix.lower() or PurePosixPath(path).name


def walk_folder(folder: Path) -> Iterator[Found]:
    """Every file below a folder. Links to folders are followed, each folder once.

    A broken link, pipe, socket or device with the name of an image is listed as well, at a place that
    can't be read: it is skipped, counted and reported like a damaged image, and not opened, because
    opening a pipe waits for its writer.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from None

    seen = set()
    for current, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        identity = os.stat(current)
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        for name in files:
            file = os.path.join(current, name)
            path = os.path.relpath(file, folder).replace(os.sep, "/")
            size, unusable = _look_at(file) if is_candidate(path) else (0, "")
            yield Found(path, size, "", ("unusable", file, unusable) if unusable else ("file", file))


def _look_at(file: str) -> tuple[int, str]:
    """The size of a regular file and "", or 0 and why it can't be read."""
    try:
        found = os.stat(file)
    except OSError as error:
        return 0, f"{'broken link' if os.path.islink(file) else 'cannot be read'}: {error.strerror}"
    if stat.S_ISREG(found.st_mode):
        return found.st_size, ""
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return 0, f"not a regular file but {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}"


def walk_zip(archive: Path) -> Iterator[Found]:
    """Every file of a zip. Its place is the member's offset: no process needs the directory again."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {archive}: {error}") from None
    for member in members:
        if not member.is_dir():
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{archive}: '{member.filename}' is encrypted or of a rare compression: repack it")
            place = ("zip", str(archive), member.header_offset, member.compress_size, member.compress_type, member.CRC)
            yield Found(_clean(member.filename), member.file_size, f"{member.CRC:08x}", place)


def walk_tar(archive: Path, scratch: Scratch) -> Iterator[Found]:
    """Every file of a tar. A compressed one is unpacked into ``scratch`` first (a plain tar of its
    own): compressed tars can only be read from the start.

    The files of a plain tar inside it, such as the ``n01440764.tar`` of ImageNet's training archive, lie in
    a folder of its name without ".tar", and are read where they are: tars add nothing but headers. Tars
    inside those, and compressed ones, are not opened.
    """
    opener = COMPRESSED.get(archive.suffix.lower())
    plain = _unpack(archive, opener, scratch) if opener else archive
    try:
        with tarfile.open(plain, "r:") as opened:
            for member in opened:
                path = PurePosixPath(_clean(member.name))
                if member.isreg() and path.suffix.lower() == ".tar" and not _is_hidden(path):
                    yield from _walk_inner_tar(plain, member)
                elif member.isreg():
                    place = ("tar", str(plain), member.offset_data, member.size)
                    yield Found(str(path), member.size, "", place)
            _check_end(opened, plain.stat().st_size)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"cannot read {archive}, it may be cut short: {error}") from None


def _walk_inner_tar(outer: Path, inner: tarfile.TarInfo) -> Iterator[Found]:
    """Every file of a plain tar that is itself a file of a plain tar."""
    end = inner.offset_data + inner.size
    folder = _clean(inner.name)[: -len(".tar")]
    try:
        if inner.size < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no tar")
        with open(outer, "rb") as file:
            file.seek(inner.offset_data)
            with tarfile.open(fileobj=file, mode="r:") as opened:  # offsets are those in the outer file
                for member in opened:
                    if member.offset >= end:  # a member of the outer tar: this one has no end mark
                        break
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError("unexpected end of data")
                    if member.isreg():
                        place = ("tar", str(outer), member.offset_data, member.size)
                        yield Found(f"{folder}/{_clean(member.name)}", member.size, "", place)
                else:
                    _check_end(opened, end)
    except tarfile.TarError as error:
        raise tarfile.ReadError(f"'{inner.name}': {error}") from None


def _check_end(opened: tarfile.TarFile, end: int) -> None:
    """tarfile takes a damaged header for the end of the archive, and a file cut between two members for a
    whole one. Raises ReadError unless there are zeros, or nothing, where the last member ends."""
    opened.fileobj.seek(min(opened.offset, end))
    if opened.offset > end or opened.fileobj.read(min(tarfile.BLOCKSIZE, end - opened.offset)).strip(b"\0"):
        raise tarfile.ReadError("unexpected end of data")


def _unpack(archive: Path, opener, scratch: Scratch) -> Path:
    try:
        plain = scratch.folder() / f"{zlib.crc32(str(archive.resolve()).encode()):08x}-{archive.stem}.tar"
        with opener(archive, "rb") as packed, open(plain, "wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"cannot unpack {archive}: {error}") from None
    return plain


def _clean(member: str) -> str:
    """An archive's name without the leading "./" or "/" some programs write."""
    return "/".join(part for part in member.replace("\\", "/").split("/") if part not in ("", "."))


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
        raise DataError(f"cannot read {file}: {error.strerror or error}") from None


def _read_file(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except PermissionError as error:
        raise CorruptFile(f"cannot be read: {error.strerror}") from None


def _read_unusable(file: str, reason: str) -> bytes:
    raise CorruptFile(reason)


def _read_tar(file: str, offset: int, size: int) -> bytes:
    with open(file, "rb") as opened:
        return _read_span(opened, offset, size)


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


def _read_parquet(file: str, row_group: int, row: int) -> bytes:
    from vfmtok.data.sources.parquet import read_row

    return read_row(file, row_group, row)


_READERS = {
    "file": _read_file,
    "unusable": _read_unusable,
    "tar": _read_tar,
    "zip": _read_zip,
    "parquet": _read_parquet,
}


def _read_span(opened: BinaryIO, offset: int, size: int) -> bytes:
    opened.seek(offset)
    content = opened.read(size)
    if len(content) != size:
        raise DataError(f"{opened.name} is shorter than its listing says")
    return content
