"""What samples are compared with: opened, or measured from images, and checked against the network and the image size.

Shapes: B batch, M reference images.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vfmtok import distributed
from vfmtok.data.loader import BAD_FRACTION
from vfmtok.errors import DataError, EvaluationError
from vfmtok.evaluation.image_sources import ImageSource, batches, open_images, size_of
from vfmtok.evaluation.inception import POOL_DIM, SPATIAL_DIM, Inception, InceptionFeatures
from vfmtok.evaluation.reference_file import Reference, read_reference, statistics_digest
from vfmtok.metrics.feature_bank import FeatureBank
from vfmtok.metrics.frechet import FeatureStatistics


@dataclass(frozen=True)
class ReferenceSet:
    """A reference with its statistics, and the features that precision and recall need."""

    reference: Reference
    features: Tensor | None  # (M,2048); None: it holds no images


def open_reference(
    path: Path,
    network: Inception,
    size: int,
    batch: int,
    world: distributed.World,
    bank: FeatureBank | None = None,
) -> Reference:
    """Statistics to compare with: of an npz of ours or ADM's, or measured from images; every process must call it.

    Args:
        path: an npz of statistics or images, a folder of images, or a prepared dataset.
        size: side of what is compared with it, and of the evaluation crop of images that are not in an npz.
        bank: takes the features of images that are measured.

    Raises:
        VFMTokError: nothing usable is there, its images have another size, or it was made with another network.
    """
    source, reference = None, None
    with distributed.together():
        if path.suffix == ".npz":
            reference = read_reference(path)
            source = reference.images
        else:
            source = open_images(path, size)
        if reference is not None and reference.pool is not None:
            _check_network(reference, network, path)
        _check_size(reference.size if reference is not None else size_of(source), size, path)
    if reference is None or reference.pool is None:
        with distributed.together():
            reference = measure_reference(network, source, source.name, batch, world.rank, world.size, bank)
    return reference


def open_reference_set(path: Path, network: Inception, size: int, batch: int, world: distributed.World) -> ReferenceSet:
    """``open_reference`` with the features of its images, if it has images; every process must call it."""
    bank = FeatureBank()  # a dataset's bad records have no features
    reference = open_reference(path, network, size, batch, world, bank)
    if reference.images is None:
        return ReferenceSet(reference, None)
    if reference.content is None:  # the statistics are the file's: its images are still to be looked at
        with distributed.together():
            for indices, features in inception_features(network, reference.images, batch, world.rank, world.size):
                bank.update(features.pool, indices)
    return ReferenceSet(reference, bank.compute())


def _check_size(found: str | None, size: int, path: Path) -> None:
    """Inception enlarges all images to 299: what was smaller is more blurred, and FID tells that first of all."""
    if found not in (None, f"{size}x{size}"):
        raise EvaluationError(
            f"the reference {path} is of {found} images, what is compared with it of {size}x{size}: measure at its "
            "size (--image-size-eval), or make a reference of this size (vfmtok stats --reference --size)"
        )


def _check_network(reference: Reference, network: Inception, path: Path) -> None:
    """A reference of ours says which weights it was measured with."""
    theirs, ours = reference.protocol.get("weights_sha256"), network.weights_sha256
    if theirs and ours and theirs != ours:
        raise EvaluationError(
            f"the reference {path} was measured with other Inception weights ({theirs[:12]}..., not {ours[:12]}...)"
        )


# --------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------


def inception_features(
    network: Inception, source: ImageSource, batch: int = 64, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, InceptionFeatures]]:
    """(indices, features) of this rank's share of a source, batch by batch."""
    device = next(network.parameters()).device
    for images, indices in batches(source, batch, rank, world_size):
        yield indices, network(images.to(device))


def measure_reference(
    network: Inception,
    source: ImageSource,
    name: str,
    batch: int = 64,
    rank: int = 0,
    world_size: int = 1,
    bank: FeatureBank | None = None,
) -> Reference:
    """The statistics of a source; every rank must call it and gets the same.

    Args:
        name: what the source is, for the protocol.
        bank: takes the pool3 features of this rank's share.

    Raises:
        DataError, EvaluationError: images that can't be read, more than 1% of bad records, or too few.
    """
    pool, spatial, content = FeatureStatistics(POOL_DIM), FeatureStatistics(SPATIAL_DIM), 0
    device = next(network.parameters()).device
    with distributed.together():  # a process that can't read an image must not leave the others waiting for sums
        for images, indices in batches(source, batch, rank, world_size):
            features = network(images.to(device))
            pool.update(features.pool)
            spatial.update(features.spatial)
            if bank is not None:
                bank.update(features.pool, indices)
            content += sum(map(_image_hash, images, indices.tolist()))
    gaussians, content = (pool.compute(), spatial.compute()), sum(distributed.gather(content)) % 2**64
    count = gaussians[0].count
    bad = len(source) - count
    if bad > max(1, BAD_FRACTION * len(source)):
        raise DataError(
            f"{bad} of the {len(source)} records of {name} are bad, more than {BAD_FRACTION:.0%}: mend the dataset "
            "(`vfmtok stats` lists them)"
        )
    protocol = {"source": name, "count": count, "crop": source.crop, "size": size_of(source)}
    protocol |= ({"bad_records": bad} if bad else {}) | network.protocol()
    return Reference(*gaussians, protocol, statistics_digest(*gaussians, protocol), source, name, content)


def _image_hash(image: Tensor, index: int) -> int:
    digest = hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8)
    digest.update(image.contiguous().numpy())
    return int.from_bytes(digest.digest(), "little")
