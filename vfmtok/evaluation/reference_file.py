"""The file of reference statistics: what samples are compared with, and how it was made.

It is an npz in ADM's layout (mu, sigma of pool3; mu_s, sigma_s of sFID's features), so ADM's evaluation reads
ours and we read ADM's ``VIRTUAL_imagenet256_labeled.npz`` as it is. Ours adds ``vfmtok``, a JSON text: the source,
its count, the crop policy, the network, and a SHA-256 over statistics and protocol. ``arr_0``, if there,
are reference images, which precision and recall need.
"""

import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vfmtok.errors import DataError, EvaluationError
from vfmtok.evaluation.image_sources import ImageSource, NpzImages, size_of
from vfmtok.evaluation.inception import POOL_DIM, SPATIAL_DIM
from vfmtok.files import replace_file
from vfmtok.metrics.frechet import Gaussian
from vfmtok.weights import reading

FORMAT = 1


@dataclass(frozen=True)
class Reference:
    """pool and spatial are None where a file holds images alone; compute them then with ``measure_reference``."""

    pool: Gaussian | None
    spatial: Gaussian | None
    protocol: dict  # empty for a file written by others
    sha256: str  # over statistics and protocol; of a file without statistics, of the whole file
    images: ImageSource | None = None
    name: str = ""  # of the file
    content: int | None = None  # of measured images: a sum of hashes, the same for any ranks and batches

    @property
    def identity(self) -> str:
        """Hex SHA-256 that says whether two references are the same. Statistics measured by another number of processes
        or at another batch size differ in their last digits and are not hashed where the images are known."""
        if self.content is None:
            return self.sha256
        return hashlib.sha256(json.dumps([self.protocol, self.content], sort_keys=True).encode()).hexdigest()

    @property
    def description(self) -> str:
        """In a protocol: what it says of itself, and its hash."""
        about = self.protocol
        named = f"{self.name} (by others: count and crop not said)"
        if about:
            bad = f", {about['bad_records']} bad records left out" if "bad_records" in about else ""
            named = f"{about['source']} ({about['count']:,} images, crop {about['crop']}{bad})"
        return f"{named}, reference {self.identity[:12]}"

    @property
    def size(self) -> str | None:
        """Of its images, such as "256x256"; None: not said."""
        return self.protocol.get("size") or (size_of(self.images) if self.images is not None else None)


def write_reference(reference: Reference, path: str | Path) -> None:
    """Write the statistics (not the images), complete or not at all.

    Raises:
        EvaluationError: there are no statistics. DataError: the disk refuses.
    """
    if reference.pool is None or reference.spatial is None:
        raise EvaluationError("this reference holds images and no statistics: measure it first")
    about = {"format": FORMAT, "protocol": reference.protocol, "sha256": reference.sha256}
    arrays = {
        "mu": reference.pool.mean.numpy(),
        "sigma": reference.pool.covariance.numpy(),
        "mu_s": reference.spatial.mean.numpy(),
        "sigma_s": reference.spatial.covariance.numpy(),
        "vfmtok": np.array(json.dumps(about, sort_keys=True)),
    }
    replace_file(Path(path), lambda file: np.savez(file, **arrays))


def read_reference(path: str | Path) -> Reference:
    """A reference file of ours or in ADM's layout: statistics, images, or both.

    Raises:
        DataError: it is missing, damaged, of a newer format, or holds neither.
    """
    path = Path(path)
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"the reference {path} is a bare array, not an npz file")
        with archive:
            names = set(archive.files)
            arrays = {name: archive[name] for name in ("mu", "sigma", "mu_s", "sigma_s", "vfmtok") if name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read the reference {path}: {error}") from None
    images = NpzImages(path) if "arr_0" in names else None
    about = _read_about(arrays.pop("vfmtok", None), path)
    if not arrays:
        if images is None:
            raise DataError(f"{path} is no reference: it has neither mu, sigma, mu_s, sigma_s nor images in 'arr_0'")
        return Reference(None, None, {}, reading.sha256(path), images, path.name)
    wanted = ("mu", "sigma", "mu_s", "sigma_s") if {"mu_s", "sigma_s"} & arrays.keys() else ("mu", "sigma")
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise DataError(f"the reference {path} lacks '{missing[0]}'")
    protocol = about.get("protocol", {})
    count = protocol.get("count")
    pool = _gaussian(arrays["mu"], arrays["sigma"], count, POOL_DIM, path)
    spatial = _gaussian(arrays["mu_s"], arrays["sigma_s"], count, SPATIAL_DIM, path) if "mu_s" in arrays else None
    digest = statistics_digest(pool, spatial, protocol)
    if about and about.get("sha256") != digest:
        raise DataError(f"the reference {path} does not match the SHA-256 inside it: it was damaged or edited")
    return Reference(pool, spatial, protocol, digest, images, path.name)


def _read_about(text: np.ndarray | None, path: Path) -> dict:
    if text is None:
        return {}
    try:
        about = json.loads(str(text))
        if about["format"] > FORMAT:
            raise DataError(f"the reference {path} is of format {about['format']}; this program reads {FORMAT}")
        return {"protocol": dict(about["protocol"]), "sha256": about["sha256"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the description inside {path} is damaged: {error}") from None


def _gaussian(mean: np.ndarray, covariance: np.ndarray, count: int | None, dim: int, path: Path) -> Gaussian:
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise DataError(f"{path}: statistics of shapes {mean.shape}, {covariance.shape} instead of {dim} features")
    return Gaussian(torch.from_numpy(mean).double(), torch.from_numpy(covariance).double(), count)


def statistics_digest(pool: Gaussian, spatial: Gaussian | None, protocol: dict) -> str:
    """Hex SHA-256 over statistics and protocol."""
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode())
    for gaussian in filter(None, (pool, spatial)):
        digest.update(gaussian.mean.numpy().tobytes())
        digest.update(gaussian.covariance.numpy().tobytes())
    return digest.hexdigest()
