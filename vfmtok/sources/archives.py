"""Files inside zips and tars, each with the place of its bytes: no process needs the directory again."""

import bz2
import gzip
import lzma
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vfmtok.errors import DataError
from vfmtok.sources.files import FOUND, Found, is_hidden, read, suffix_of
from vfmtok.sources.packed import Packed
from vfmtok.sources.scratch import Scratch


def _open_zstandard(path: Path, mode: str) -> BinaryIO:
    """Raises DataError where the package is missing."""
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{path} is compressed by Zstandard: pip install 'vfmtok[zstd]' brings what reads it") from None
    packed = open(path, mode)  # noqa: SIM115 - closed with the reader
    return zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True, closefd=True)


ZSTANDARD = b"\x28\xb5\x2f\xfd"
COMPRESSED = {  # by the first bytes
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    ZSTANDARD: _open_zstandard,
}
_MAX_LINKS = 40  # on the way to a file, as the kernel's limit


def walk_zip(archive: Path) -> Packed[Found]:
    """Every file of a zip, in its order, links as in ``walk_tar``.

    Raises:
        DataError: the zip can't be read, or a member is encrypted or compressed by a rare method.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {archive}: {error}") from None
    files, links = Packed(FOUND), {}
    for member in members:
        path = _clean(member.filename)
        if member.is_dir():
            continue
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{archive}: '{member.filename}' is encrypted or of a rare compression: repack it")
        place = ("zip", str(archive), member.header_offset, member.compress_size, member.compress_type, member.CRC)
        if stat.S_ISLNK(member.external_attr >> 16):  # its content is where it leads
            links[path] = _from_folder_of(path, read(place).decode("utf-8", "surrogateescape"))
        else:
            files.append(Found(path, member.file_size, f"{member.CRC:08x}", place))
    files.extend(_linked(archive, files, links))
    return files


def walk_tar(archive: Path, scratch: Scratch) -> Packed[Found]:
    """Every file of a tar, in its order. A compressed one is unpacked into ``scratch`` first (a plain tar of its
    own): compressed tars can only be read from the start.

    Links are the files, or the folders of files, that they lead to inside the tar. The files of a plain tar inside
    it, such as the ``n01440764.tar`` of ImageNet's training archive, lie in a folder of its name without ".tar", and
    are read where they are: tars add nothing but headers. Tars inside those, and compressed ones, are not opened.

    Raises:
        DataError: the tar can't be read or unpacked, or is cut short.
    """
    try:
        with open(archive, "rb") as opened:
            start = opened.read(8)
        opener = next((COMPRESSED[magic] for magic in COMPRESSED if start.startswith(magic)), None)
        plain = _unpack(archive, opener, scratch) if opener else archive
        with tarfile.open(plain, "r:") as opened:
            return _members(opened, plain, plain.stat().st_size)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"cannot read {archive}, it may be cut short: {error}") from None


def _members(opened: tarfile.TarFile, archive: Path, end: int, folder: str = "") -> Packed[Found]:
    """The files of an opened tar that ends at ``end`` in the file ``archive``; with a ``folder``, of a tar in a tar.

    Raises:
        TarError: it is damaged or ends too early.
    """
    files, inner = Packed(FOUND), Packed(FOUND)
    links: dict[str, str] = {}
    while (member := opened.next()) is not None:
        opened.members.clear()  # tarfile would keep every header
        if member.offset >= end:  # a member of the outer tar: this one has no end mark
            break
        stored = sum(size for _, size in member.sparse) if member.issparse() else member.size * member.isreg()
        if folder and member.offset_data + stored > end:
            raise tarfile.ReadError("unexpected end of data")
        path = folder + _clean(member.name)
        if member.islnk():
            links[path] = folder + _clean(member.linkname)
        elif member.issym():
            links[path] = _from_folder_of(path, member.linkname)
        elif member.isreg() and not folder and suffix_of(path) == ".tar" and not is_hidden(path):
            inner.extend(_inner_tar(archive, member, path[: -len(".tar")] + "/"))
        elif member.issparse():
            place = ("sparse", str(archive), member.offset_data, member.size, tuple(map(tuple, member.sparse)))
            files.append(Found(path, member.size, "", place))
        elif member.isreg():
            files.append(Found(path, member.size, "", ("tar", str(archive), member.offset_data, member.size)))
    else:
        _check_end(opened.fileobj, opened.offset, end)
    files.extend(_linked(archive, files, links))
    files.extend(inner)
    return files


def _inner_tar(outer: Path, inner: tarfile.TarInfo, folder: str) -> Packed[Found]:
    """The files of a plain tar that is itself a file of a plain tar."""
    try:
        if inner.size < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no tar")
        with open(outer, "rb") as file:
            file.seek(inner.offset_data)
            with tarfile.open(fileobj=file, mode="r:") as opened:  # offsets are those in the outer file
                return _members(opened, outer, inner.offset_data + inner.size, folder)
    except tarfile.TarError as error:
        raise tarfile.ReadError(f"'{inner.name}': {error}") from None


def _check_end(file: BinaryIO, offset: int, end: int) -> None:
    """tarfile takes a damaged header for the end of the archive, and a file cut between two members for a
    whole one. Raises ReadError unless there are zeros, or nothing, where the last member ends."""
    file.seek(min(offset, end))
    if offset > end or file.read(min(tarfile.BLOCKSIZE, end - offset)).strip(b"\0"):
        raise tarfile.ReadError("unexpected end of data")


def _unpack(archive: Path, opener, scratch: Scratch) -> Path:
    try:
        plain = scratch.folder() / f"{zlib.crc32(str(archive.resolve()).encode()):08x}-{archive.stem}.tar"
        with opener(archive, "rb") as packed, open(plain, "wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except DataError:
        raise
    except Exception as error:  # every format has its own
        raise DataError(f"cannot unpack {archive}: {error}") from None
    return plain


def _clean(member: str) -> str:
    """An archive's name without the leading "./" or "/" some programs write."""
    return "/".join(part for part in member.replace("\\", "/").split("/") if part not in ("", "."))


# --------------------------------------------------------------------------------------
# Links
# --------------------------------------------------------------------------------------


def _from_folder_of(path: str, target: str) -> str:
    """Where a symbolic link leads, as a path inside the archive; outside of it, one that begins with "/" or ".."."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def _linked(archive: Path, files: Packed[Found], links: dict[str, str]) -> list[Found]:
    """The files that links lead to, under the links' paths; one that leads to none has a place that can't be read."""
    if not links:
        return []
    by_path = {found.path: found for found in files}
    folders = {posixpath.dirname(path) for path in by_path}
    folders |= {above for folder in folders for above in _above(folder)}
    added: list[Found] = []
    to_folders: dict[str, str] = {}
    for path, target in links.items():
        end = _follow(target, links)
        if end in folders and end not in by_path:
            to_folders[path] = end
        elif end in by_path:
            added.append(by_path[end]._replace(path=path))
        else:
            reason = f"a link to '{target}', which is not in the archive"
            added.append(Found(path, 0, "", ("unusable", str(archive), reason)))
    for path, end in to_folders.items():
        if not f"{path}/".startswith(f"{end}/"):  # else it lies in the folder that it leads to
            below = [found for found in (*files, *added) if found.path.startswith(f"{end}/")]
            added += [found._replace(path=path + found.path[len(end) :]) for found in below]
    return added


def _above(folder: str) -> Iterator[str]:
    while folder := posixpath.dirname(folder):
        yield folder


def _follow(path: str, links: dict[str, str]) -> str | None:
    """The path without links in it, or None if they lead in a circle."""
    for _ in range(_MAX_LINKS):
        parts = path.split("/")
        prefixes = ("/".join(parts[:i]) for i in range(1, len(parts) + 1))
        link = next((prefix for prefix in prefixes if prefix in links), None)
        if link is None:
            return path
        path = posixpath.normpath(links[link] + path[len(link) :])
    return None
