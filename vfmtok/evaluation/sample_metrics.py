"""What a set of samples is measured by, whoever made them: gFID, sFID, IS, precision and recall, KID, fd@<encoder>.

A number that can't be computed does not take the others with it: it is left out, and a warning says so.

Shapes: N samples, M reference images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vfmtok import distributed
from vfmtok.encoders.vfm import Encoder
from vfmtok.evaluation.encoder_distance import EncoderStatistics, feature_protocol
from vfmtok.evaluation.image_sources import ImageSource, batches
from vfmtok.evaluation.results import Measured, Number
from vfmtok.metrics.feature_bank import FeatureBank
from vfmtok.metrics.frechet import FeatureStatistics, Gaussian, check_same_tap, frechet_distance
from vfmtok.metrics.inception_score import SPLITS, InceptionScore, Score
from vfmtok.metrics.kernel_distance import SUBSET_SIZE, SUBSETS, kernel_distance
from vfmtok.metrics.precision_recall import NEIGHBOUR, precision_recall

if TYPE_CHECKING:  # they need torch-fidelity, which sampling alone does not
    from vfmtok.evaluation.inception import Inception
    from vfmtok.evaluation.reference import ReferenceSet


@dataclass(frozen=True)
class Subject:
    """The samples, what every number's name ends with ("CFG 1.5"; "": nothing), and what every protocol begins with."""

    images: ImageSource
    tag: str
    about: str

    def named(self, name: str) -> str:
        return f"{name} ({self.tag})" if self.tag else name


def measure_samples(
    subject: Subject,
    inception: Inception,
    references: ReferenceSet | None,
    batch: int,
    world: distributed.World,
    encoder: Encoder | None = None,
) -> Measured:
    """Every process must call it.

    Args:
        references: None leaves out all that needs one.
        batch: of every process.
        encoder: for fd@<encoder>, with weights.

    Raises:
        VFMTokError: images that can't be read, features that are not finite; the same on all processes.
    """
    from vfmtok.evaluation.reference import inception_features

    count = len(subject.images)
    score = InceptionScore(count) if count >= SPLITS else None
    bank = FeatureBank(count)
    pool, spatial = FeatureStatistics(2048), FeatureStatistics(2023)
    with distributed.together():
        for indices, features in inception_features(inception, subject.images, batch, world.rank, world.size):
            pool.update(features.pool)
            spatial.update(features.spatial)
            bank.update(features.pool, indices)
            if score is not None:
                score.update(features.probabilities, indices)
    with distributed.together():
        gaussians, features = (pool.compute(), spatial.compute()), bank.compute()
        scored = score.compute() if score is not None else None
    ours_and_theirs = _encoder_statistics(subject, references, encoder, batch, world)
    found = Measured()
    with distributed.together():
        if world.is_main:  # the distances take seconds of all cores; one process is enough
            network = inception.description
            _add_distances(found, subject, references, gaussians, network, inception.protocol()["spatial"])
            _add_score(found, subject, scored, network)
            _add_pairs(found, subject, references, features, network, world)
            _add_encoder_distance(found, subject, references, encoder, ours_and_theirs)
    return found


def _add_distances(
    found: Measured,
    subject: Subject,
    references: ReferenceSet | None,
    gaussians: tuple[Gaussian, Gaussian],
    network: str,
    spatial: str,
) -> None:
    """gFID and sFID, as far as the reference goes; ``spatial`` says where the features of sFID are read."""
    if references is None:
        found.notes.append("gFID and sFID are left out: no reference (--ref-batch)")
        return
    reference = references.reference
    protocol = f"{subject.about}, against {reference.description}; {network}"
    name = subject.named("gFID")
    found.add(name, lambda: frechet_distance(gaussians[0], reference.pool, "gFID"), f"pool3; {protocol}")
    if reference.spatial is None:
        found.notes.append("sFID is left out: the reference has no mu_s and sigma_s")
        return

    def spatial_distance() -> float:
        check_same_tap(reference.spatial, gaussians[1])
        return frechet_distance(gaussians[1], reference.spatial, "sFID")

    found.add(subject.named("sFID"), spatial_distance, f"{spatial}; {protocol}")


def _add_score(found: Measured, subject: Subject, scored: Score | None, network: str) -> None:
    if scored is None:
        found.notes.append(f"IS is left out: {SPLITS} splits need as many samples")
        return
    of = f"{SPLITS} splits in order, std {scored.std:.3f}; {subject.about}; {network}"
    found.numbers.append(Number(subject.named("IS"), scored.mean, of))


def _add_pairs(
    found: Measured,
    subject: Subject,
    references: ReferenceSet | None,
    features: Tensor,
    network: str,
    world: distributed.World,
) -> None:
    """Pr, Rc and KID of features (N,2048), as far as the reference holds images."""
    others = references.features if references is not None else None  # (M,2048)
    count = 0 if others is None else len(others)
    fewer = min(count, len(features))
    why = f"the reference holds {count:,} images and there are {len(features):,} samples"
    if fewer <= NEIGHBOUR:
        hint = "; --ref-batch may also name a dataset or a folder of images" if not count else ""
        found.notes.append(f"Pr, Rc and KID are left out: {why}{hint}")
        return
    of = f"{subject.about}, against {count:,} reference images; {network}"
    shares = precision_recall(features, others, device=world.device)
    for name, share in (("Pr", shares.precision), ("Rc", shares.recall)):
        found.numbers.append(Number(subject.named(name), share, f"k={NEIGHBOUR} on pool3; {of}"))
    if fewer < SUBSET_SIZE:
        found.notes.append(f"KID is left out: its subsets are of {SUBSET_SIZE:,}, {why}")
        return
    kernel = kernel_distance(features.to(world.device), others)
    how = f"mean over {SUBSETS} subsets of {SUBSET_SIZE:,}, std {kernel.std:.5f}; pool3; {of}"
    found.numbers.append(Number(subject.named("KID"), kernel.mean, how, 5))


# --------------------------------------------------------------------------------------
# Another encoder
# --------------------------------------------------------------------------------------


def _encoder_statistics(
    subject: Subject,
    references: ReferenceSet | None,
    encoder: Encoder | None,
    batch: int,
    world: distributed.World,
) -> list[Gaussian] | None:
    """Of the samples and of the reference's images; None: not wanted, or there are none. Every process must call it."""
    others = references.reference.images if references is not None else None
    if encoder is None or others is None:
        return None
    gaussians = []
    for images in (subject.images, others):
        statistics = EncoderStatistics(encoder)
        with distributed.together():
            for pixels, _ in batches(images, batch, world.rank, world.size):
                statistics.update(pixels.to(world.device))
        with distributed.together():
            gaussians.append(statistics.compute())
    return gaussians


def _add_encoder_distance(
    found: Measured,
    subject: Subject,
    references: ReferenceSet | None,
    encoder: Encoder | None,
    gaussians: list[Gaussian] | None,
) -> None:
    if encoder is None:
        return
    name = EncoderStatistics(encoder).name
    if gaussians is None:
        found.notes.append(f"{name} is left out: the reference holds no images")
        return
    against = f"{gaussians[1].count:,} images of {references.reference.description}"
    protocol = (
        f"mean over the cells of {feature_protocol(encoder, encoder.levels[-1:])}; {subject.about}, against {against}"
    )
    found.add(subject.named(name), lambda: frechet_distance(*gaussians, name), protocol)
