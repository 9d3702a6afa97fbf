"""Files of the Hugging Face Hub: fetched once, continued after a cut, in the cache only when their hash is right.

The requests, the redirects, the progress bar and the layout of the cache are huggingface_hub's, so that its own
commands see and clean what is fetched here. What it does not do is done here: it drops what a broken or killed download
had received, and it takes what it received for what was asked for. A download therefore grows in a file beside the
cache's and is moved into it when its hash is the one the Hub states: SHA-256 for weights, git's SHA-1 for small files.

``http_get`` is the one function used that is not public: the public ``hf_hub_download`` keeps nothing of a broken
download outside its cache, and moves a file there before anybody has hashed it. setup.py's oldest version and today's
both have it, and tests/weights/test_download.py would fail without it.

HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE are read when a file is asked for.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vfmtok.errors import WeightsError
from vfmtok.files import replacing

IDLE_ATTEMPTS = 3  # in a row that bring nothing end a download whose connection breaks; huggingface_hub tries 5 in each
_TRUE = {"1", "ON", "YES", "TRUE"}
log = logging.getLogger(__name__)


class AbsentError(WeightsError):
    """The Hub answered: there is no such repository, revision or file."""


class UnreachedError(WeightsError):
    """The Hub was not asked or not reached, and the cache does not have the file."""


@dataclass(frozen=True)
class Access:
    """How this thread reaches the Hub; None: as the environment says."""

    cache: Path | None = None
    offline: bool | None = None
    to: Path | None = None


_LOCAL = threading.local()


@contextlib.contextmanager
def hub_access(
    cache: str | Path | None = None, offline: bool | None = None, to: str | Path | None = None
) -> Iterator[None]:
    """Fetch otherwise inside the context, also what is fetched far below it, such as an encoder's weights.

    Args:
        cache: a folder instead of huggingface_hub's.
        offline: from the cache alone.
        to: a folder that files go to under their names, instead of a cache.
    """
    before = _access()
    chosen = {"cache": cache and Path(cache).expanduser(), "offline": offline, "to": to and Path(to).expanduser()}
    _LOCAL.access = replace(before, **{name: value for name, value in chosen.items() if value is not None})
    try:
        yield
    finally:
        _LOCAL.access = before


def fetch(repository: str, file: str, revision: str | None = None, sha256: str | None = None) -> Path:
    """The path of a repository's file, downloaded unless it is there already.

    Args:
        repository: "owner/name".
        revision: branch, tag or commit; None is "main".
        sha256: what the file must have, besides what the Hub states.

    Raises:
        AbsentError: the Hub has no such repository, revision or file.
        WeightsError: it is not in the cache and the Hub can't be reached; the connection broke (what was received stays
            for the next time); its hash is wrong (nothing stays).
    """
    sha256 = asked_sha256(sha256)
    what = f"{repository}/{file}" + (f" ({revision})" if revision else "")
    cache = _access().cache or Path(os.path.expandvars(os.environ.get("HF_HUB_CACHE") or _hub().constants.HF_HUB_CACHE))
    cache = cache.expanduser()
    cached = _find_cached(repository, file, revision, cache)
    if is_offline():
        if cached is None:
            raise UnreachedError(f"{what} is not in the cache {cache}, and this is offline: download it while online")
        return _of_cache(cached, sha256, file, what)
    try:
        facts = _hub().get_hf_file_metadata(_url(repository, file, revision), timeout=10)
    except Exception as error:  # requests, httpx, OS and Hub errors differ between versions
        problem = _explained(error, what, repository, revision)
        if isinstance(problem, AbsentError) or cached is None:
            raise problem from None
        log.warning("%s: the cached copy is used", problem)
        return _of_cache(cached, sha256, file, what)
    if not all(re.fullmatch(r"\w[\w.-]*", text or "") for text in (facts.etag, facts.commit_hash)):  # names of files
        raise WeightsError(f"{endpoint()} does not answer as the Hub does (no ETag or commit): check HF_ENDPOINT")
    if (to := _access().to) is not None:
        return _fetch_into_folder(repository, file, facts, sha256, to / file, what)
    return _fetch_into_cache(repository, file, revision, facts, sha256, cache, what)


def sha256_stated(path: Path) -> str | None:
    """The SHA-256 that the Hub stated for a file of the cache, if it is known."""
    stated = _stated_by_cache(path)
    return stated if stated and len(stated) == 64 else None


def _fetch_into_cache(
    repository: str, file: str, revision: str | None, facts: Any, sha256: str | None, cache: Path, what: str
) -> Path:
    folder = "--".join(["models", *repository.split("/")])  # the cache's documented layout
    blob, lock = cache / folder / "blobs" / facts.etag, cache / ".locks" / folder / f"{facts.etag}.lock"
    fresh = False
    if _find_cached(repository, file, facts.commit_hash, cache) is None:
        try:
            for place in (blob.parent, lock.parent):
                place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WeightsError(f"cannot write to the cache {cache}: {error.strerror}") from None
        with _hub().utils.WeakFileLock(lock):  # of several processes one downloads
            if not blob.exists():
                _download(repository, file, facts, sha256, blob, what)
                fresh = True
    try:  # finds the content in the cache and enters it under its name
        path = Path(_hub().hf_hub_download(repository, file, revision=revision, cache_dir=cache, endpoint=endpoint()))
    except Exception as error:
        raise _explained(error, what, repository, revision) from None
    if not (fresh and path.resolve() == blob.resolve()):  # large files are read once
        _check(path, _stated_by_cache(path) or facts.etag, sha256, what)
    return path


def _fetch_into_folder(repository: str, file: str, facts: Any, sha256: str | None, target: Path, what: str) -> Path:
    whole = target.is_file() and facts.size in (None, target.stat().st_size)
    if whole and _wrong_hash(target, facts.etag, sha256) is None:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"cannot write to {target.parent}: {error.strerror}") from None
    _download(repository, file, facts, sha256, target, what)
    return target


def _of_cache(cached: Path, sha256: str | None, file: str, what: str) -> Path:
    """A file of the cache, or its copy in the folder that files go to."""
    _check(cached, _stated_by_cache(cached), sha256, what)
    if (to := _access().to) is None:
        return cached
    target = to / file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            shutil.copyfile(cached, part)
    except OSError as error:
        raise WeightsError(f"cannot write {target}: {error.strerror}") from None
    return target


# --------------------------------------------------------------------------------------
# The transfer
# --------------------------------------------------------------------------------------


def _download(repository: str, file: str, facts: Any, sha256: str | None, target: Path, what: str) -> None:
    """``target`` appears complete and checked or not at all; what a cut leaves is continued the next time."""
    part = target.with_name(f"{target.name}.{facts.etag[:16]}.part")
    _receive(_url(repository, file, facts.commit_hash), part, facts.size, file, what)
    problem = _wrong_hash(part, facts.etag, sha256)
    if problem:
        part.unlink(missing_ok=True)
        raise WeightsError(f"{what}: {problem}; what was received is thrown away")
    try:
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(part, target)
    except OSError as error:
        raise WeightsError(f"cannot write {target}: {error.strerror}") from None


def _receive(url: str, part: Path, size: int | None, name: str, what: str) -> None:
    """Append to ``part`` what it lacks."""
    headers = {**_hub().utils.build_hf_headers(), "Accept-Encoding": "identity"}
    idle = 0  # attempts in a row that brought nothing
    while True:
        have = part.stat().st_size if part.exists() else 0
        if size is None or have > size:  # nothing tells whether it is the beginning of the file
            part.unlink(missing_ok=True)
            have = 0
        if size and have == size:  # all but the last check was done when it was killed
            return
        try:
            with open(part, "ab") as handle:
                _hub().file_download.http_get(
                    url, handle, resume_size=have, headers=headers, expected_size=size, displayed_filename=name
                )
            return
        except Exception as error:
            got = part.stat().st_size if part.exists() else 0
            idle = idle + 1 if got <= have else 0
            if idle == IDLE_ATTEMPTS or not _is_of_connection(error):
                raise WeightsError(
                    f"the download of {what} broke off after {got:,} of {size or 0:,} bytes ({reason(error)}): the "
                    "same command again continues it"
                ) from None
            time.sleep(1)


def _is_of_connection(error: Exception) -> bool:
    """Whether trying again may help; an answer of the server, or a full disk, is final."""
    if isinstance(error, _hub().utils.HfHubHTTPError):
        return False
    return not isinstance(error, OSError) or isinstance(error, ConnectionError) or error.errno is None


# --------------------------------------------------------------------------------------
# Hashes
# --------------------------------------------------------------------------------------


def asked_sha256(text: str | None) -> str | None:
    """A hash that a user asks for, in lower case as ours are. Raises WeightsError for what is none."""
    if text is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise WeightsError(f"'{text}' is no SHA-256: 64 hexadecimal digits are needed")
    return text and text.lower()


def _check(path: Path, stated: str | None, sha256: str | None, what: str) -> None:
    """Raise WeightsError if a file that is there is not what it must be."""
    problem = _wrong_hash(path, stated, sha256)
    if problem:
        raise WeightsError(f"{what}: {problem}: delete {path.resolve()} and download it again")


def _wrong_hash(path: Path, stated: str | None, sha256: str | None) -> str | None:
    """What is wrong with a file's hashes, or None."""
    found = {}
    for wanted, by in ((stated, "the Hub states"), (sha256, "is asked for")):
        kind = "SHA-256" if re.fullmatch(r"[0-9a-f]{64}", wanted or "") else "git's SHA-1"
        if not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", wanted or ""):
            continue  # an ETag that is no hash
        if kind not in found:
            found[kind] = _digest(path, kind)
        if found[kind] != wanted:
            return f"{kind} is {found[kind]}, {wanted} {by}"
    return None


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.sha256()
    if kind != "SHA-256":
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _stated_by_cache(path: Path) -> str | None:
    """In the cache a file's content bears the name that the Hub gave it, unless the file system has no links.

    One link is followed: the content may itself be a link, into the store that huggingface_hub keeps for all
    repositories under names of its own.
    """
    return Path(os.readlink(path)).name if path.is_symlink() else None


# --------------------------------------------------------------------------------------
# huggingface_hub
# --------------------------------------------------------------------------------------


def _hub() -> Any:
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.file_download
    import huggingface_hub.utils

    return huggingface_hub


def _access() -> Access:
    return getattr(_LOCAL, "access", Access())


def is_offline() -> bool:
    """Whether nothing may be downloaded: by ``hub_access`` here, or by HF_HUB_OFFLINE."""
    offline = _access().offline
    environment = os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE or _hub().constants.HF_HUB_OFFLINE
    return bool(environment) if not offline else True


def endpoint() -> str:
    """The address of the Hub."""
    return (os.environ.get("HF_ENDPOINT") or _hub().constants.ENDPOINT).rstrip("/")


def _url(repository: str, file: str, revision: str | None) -> str:
    return _hub().hf_hub_url(repository, file, revision=revision, endpoint=endpoint())


def _find_cached(repository: str, file: str, revision: str | None, cache: Path) -> Path | None:
    found = _hub().try_to_load_from_cache(repository, file, cache_dir=cache, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _explained(error: Exception, what: str, repository: str, revision: str | None) -> WeightsError:
    known = _hub().utils
    if isinstance(error, known.GatedRepoError):
        return AbsentError(f"{what}: its owner must grant access: ask for it at {endpoint()}/{repository}")
    if isinstance(error, known.RepositoryNotFoundError):
        return AbsentError(f"{endpoint()} has no repository '{repository}' (or it is private: set HF_TOKEN)")
    if isinstance(error, known.RevisionNotFoundError):
        return AbsentError(f"the repository '{repository}' has no revision '{revision}'")
    if isinstance(error, known.EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        return AbsentError(f"the repository has no file {what}")
    if isinstance(error, known.HFValidationError):
        return AbsentError(f"'{repository}' is no name of a repository: {reason(error)}")
    return UnreachedError(f"{what} is not in the cache and cannot be had from {endpoint()} ({reason(error)})")


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
