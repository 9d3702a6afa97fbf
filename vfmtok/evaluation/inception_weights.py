"""The weights file of the 2015 Inception: where it is looked for, how it is fetched and checked.

It is torch-fidelity's conversion of the TensorFlow graph that FID was defined with. Its name ends, as PyTorch Hub
has it, in the first digits of its SHA-256; more of the hash is not published. The whole hash of the file used is
part of every protocol that this package prints.
"""

import hashlib
import os
import re
import urllib.request
from pathlib import Path

import torch

from vfmtok import distributed
from vfmtok.errors import WeightsError
from vfmtok.files import replacing
from vfmtok.weights import reading

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
VARIABLE = "VFMTOK_INCEPTION"  # environment variable that names the file
_TIMEOUT = 30.0  # seconds without a byte


def find_weights(path: str | Path | None = None, url: str = URL, download: bool = True) -> Path:
    """The weights file: ``path``, or what $VFMTOK_INCEPTION names, or PyTorch Hub's cache, or downloaded into it.

    A file that was named is taken as it is; one of the cache must have the hash in its name. Of several
    processes one per machine downloads, the others wait; all must call this together.

    Raises:
        WeightsError: it is nowhere, can't be downloaded, or has another hash; says where it was looked for.
    """
    named = path or os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            origin = "" if path else f" (from ${VARIABLE})"
            raise WeightsError(f"no Inception weights at {named}{origin}: download {url} there")
        return Path(named)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    problem = ""
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        try:
            _fill_cache(cached, url, download)
        except WeightsError as error:
            problem = str(error)
    problems = [text for text in distributed.gather(problem) if text]
    if problems:
        raise WeightsError(problems[0])
    return cached


def _fill_cache(cached: Path, url: str, download: bool) -> None:
    looked = f"looked for --inception, ${VARIABLE} and {cached}"
    if cached.is_file():
        _check_hash(reading.sha256(cached), url, f"{cached}: delete it or name another file")
    elif download:
        try:
            fetch(url, cached)
        except WeightsError as error:
            raise WeightsError(
                f"no Inception weights: {looked}; {error}; fetch the file elsewhere and name it by --inception or "
                f"${VARIABLE}"
            ) from None
    else:
        raise WeightsError(
            f"no Inception weights: {looked}; download {url} and name the file by --inception or ${VARIABLE}"
        )


def fetch(url: str, target: Path) -> None:
    """Download ``url`` to ``target``, which appears complete and checked or not at all.

    Raises:
        WeightsError: the server can't be reached, the connection broke, the hash is not the one that the name
            of the file ends in, or the disk refuses.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, received = hashlib.sha256(), 0
        with replacing(target, shared=True) as part:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, open(part, "wb") as file:
                expected = int(response.headers.get("Content-Length") or 0)
                while block := response.read(1 << 20):
                    digest.update(block)
                    received += file.write(block)
            if received < expected:
                raise WeightsError(f"the download of {url} was interrupted after {received} of {expected} bytes")
            _check_hash(digest.hexdigest(), url, f"what {url} sent")
    except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors
        raise WeightsError(f"cannot download {url} to {target}: {error}") from None


def _check_hash(digest: str, url: str, what: str) -> None:
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
    if match and not digest.startswith(match[1]):
        raise WeightsError(f"SHA-256 {digest[:16]}... instead of {match[1]}...: {what}")
