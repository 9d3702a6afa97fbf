"""Shards behind a URL, through fsspec: http(s)://, hf://, s3://, ... fetched whole into a cache of the last few.

A shard is a large object that is quick to read from its start and slow to read in pieces, so it is fetched whole, once
per machine and epoch. Which shards are there, and how many samples each holds, must be known before the first step: an
index that lies beside a shard (``X.tar.index``, made by opening the shards once where they are local) is fetched for
that; without one the shard itself is read once, and its index kept in the cache for good.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from vfmtok.data import shard_index
from vfmtok.data.shards import ShardOptions, cache_folder, index_suffix, write_index
from vfmtok.errors import DataError
from vfmtok.files import replacing
from vfmtok.sources.given import expand_braces

try:
    import fcntl
except ImportError:  # not on Windows: processes may fetch the same shard, each for itself
    fcntl = None

KEPT_SHARDS = 16  # per data set and machine; ``order.WINDOW`` of them are in use at once
ATTEMPTS = 5  # at reading something remote, with pauses of 1, 2, 4, 8 s

Result = TypeVar("Result")


def is_url(path: str) -> bool:
    return "://" in path


@dataclass(frozen=True)
class RemoteShard:
    """A shard at a URL, as it was when it was listed."""

    url: str
    size: int  # bytes
    tag: str  # changes with the content, where the server says so: an ETag, or ""

    @property
    def name(self) -> str:
        return PurePosixPath(self.url.partition("?")[0]).name

    def file(self) -> Path:
        path = self._folder / f"{self._identity}-{self.name}"
        if not self._is_whole(path):
            with _locked(path.with_name(f"{path.name}.lock")):
                if not self._is_whole(path):
                    self._fetch(path)
                    _remove_old(self._folder)
        with contextlib.suppress(OSError):
            os.utime(path)  # it was used last
        return path

    def find_index(self, options: ShardOptions) -> Path | None:
        path = self._index(options)
        return path if self._fits(path) else None

    def make_index(self, options: ShardOptions) -> Path:
        path = self._index(options)
        found = self._fetch_index(index_suffix(options))
        if found is not None:
            write_index([path], found)
            if self._fits(path):
                return path
        return write_index([path], shard_index.build(self.file(), self.url, options.keys, options.labelled))

    def _index(self, options: ShardOptions) -> Path:
        return self._folder / f"{self._identity}-{self.name}{index_suffix(options)}"

    @property
    def _folder(self) -> Path:
        base = self.url.partition("?")[0].rpartition("/")[0]
        return cache_folder() / hashlib.sha256(base.encode()).hexdigest()[:16]

    @property
    def _identity(self) -> str:
        return hashlib.sha256(f"{self.url}\n{self.size}\n{self.tag}".encode()).hexdigest()[:16]

    def _is_whole(self, path: Path) -> bool:
        with contextlib.suppress(OSError):
            return path.stat().st_size == self.size
        return False

    def _fits(self, index: Path) -> bool:
        header = shard_index.read_header(index)
        return header is not None and header.size == self.size

    def _fetch(self, path: Path) -> None:
        def fetch() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, sync=False) as part:
                files, place = _open(self.url)
                files.get_file(place, str(part))
                if part.stat().st_size != self.size:
                    raise OSError(f"{part.stat().st_size} bytes came of {self.size}")

        _persistently(self.url, fetch)

    def _fetch_index(self, suffix: str) -> bytes | None:
        """The index beside the shard, None if there is none."""
        url, mark, query = self.url.partition("?")
        url = f"{url}{suffix}{mark}{query}"

        def fetch() -> bytes | None:
            files, place = _open(url)
            try:
                return files.cat_file(place)
            except FileNotFoundError:
                return None

        return _persistently(url, fetch)


def find_remote(pattern: str) -> list[tuple[RemoteShard, str]]:
    """The shards that a URL names, by name, each with its place below it.

    Args:
        pattern: the URL of one .tar or of a folder of them, with ``{00..99}`` or ``*`` for several.

    Raises:
        DataError: there are none, or the server can't be read.
    """
    found: dict[str, tuple[RemoteShard, str]] = {}
    for url in expand_braces(pattern):
        for shard, inside in _persistently(url, lambda url=url: _list(url)):
            found[shard.url] = shard, inside
    if not found:
        raise DataError(f"no .tar at {pattern}")
    return [found[url] for url in sorted(found)]


def _list(url: str) -> list[tuple[RemoteShard, str]]:
    files, place = _open(url)
    protocol = url.partition("://")[0]
    if set("*[") & set(url):
        paths = {str(path): "" for path in files.glob(place)}
    elif url.partition("?")[0].endswith(".tar"):
        paths = {place: ""}
    else:
        listed = [str(path) for path in files.find(place)]
        paths = {path: path.removeprefix(place).lstrip("/") for path in listed if path.endswith(".tar")}
    shards = []
    for path, inside in paths.items():
        info = files.info(path)
        size, tag = info.get("size"), info.get("ETag") or info.get("etag") or ""
        if size is None:
            raise DataError(f"{path}: the server does not say how large it is")
        full = path if is_url(path) else f"{protocol}://{path}"
        shards.append((RemoteShard(full, int(size), str(tag)), inside))
    return shards


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises DataError where a package is missing."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = ". pip install 'vfmtok[remote]' brings it" if url.startswith(("http", "s3")) else ""
        raise DataError(f"cannot read {url}: {error}{extra}") from None
    except ValueError as error:
        raise DataError(f"cannot read {url}: {error}") from None


def _persistently(url: str, attempt: Callable[[], Result]) -> Result:
    """What ``attempt`` returns, tried a few times. Raises DataError."""
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except DataError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(f"cannot read {url}: {type(error).__name__} {error}") from None
        except Exception as error:  # every file system has its own
            reason = " ".join(f"{type(error).__name__} {error}".split())
        if number < ATTEMPTS - 1:
            time.sleep(2**number)
    raise DataError(f"cannot read {url}: {reason}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time. Raises DataError if the cache can't be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror} (the cache of shards; set XDG_CACHE_HOME)") from None
    with file:
        if fcntl:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_old(folder: Path) -> None:
    """Keep the shards that were used last. Who still reads a removed one reads on: its file is open."""
    with contextlib.suppress(OSError):
        shards = sorted(folder.glob("*.tar"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in shards[KEPT_SHARDS:]:
            path.unlink(missing_ok=True)
