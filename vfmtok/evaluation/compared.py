"""The networks and the reference that a command names, opened and checked against each other.

Shapes: M reference images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vfmtok import distributed
from vfmtok.errors import EvaluationError
from vfmtok.evaluation.image_sources import open_images, size_of
from vfmtok.evaluation.inception import Inception, SpatialTap, load_inception
from vfmtok.evaluation.reference import Reference, inception_features, measure_reference, read_reference
from vfmtok.metrics.feature_bank import FeatureBank


@dataclass(frozen=True)
class ReferenceSet:
    """A reference with its statistics, and the features that precision and recall need."""

    reference: Reference
    features: Tensor | None  # (M,2048); None: it holds no images


def open_inception(path: Path | None, world: distributed.World, spatial_tap: SpatialTap = "convolution") -> Inception:
    """The Inception network on this process's device; every process must call it. Raises WeightsError."""
    with distributed.together():
        network = load_inception(path, spatial_tap)
    return network.eval().to(world.device)


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
