"""The numbers of a reconstruction, from its finished blocks: rFID, rIS, pixels, codebook usage.

Shapes: N records, n good records, K tokens, E side of the evaluation's images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from vfmtok import distributed
from vfmtok.code import Code, Ids, Segment
from vfmtok.data.loader import check_bad
from vfmtok.data.records import RecordDataset
from vfmtok.evaluation import jobs
from vfmtok.evaluation.encoder_distance import EncoderDistance
from vfmtok.evaluation.pixel_protocols import GAUSSIAN_SSIM, PIXEL_PROTOCOLS, PixelProtocol, Pixels
from vfmtok.evaluation.resizing import PROTOCOLS, Resize
from vfmtok.evaluation.results import Measured, Number
from vfmtok.evaluation.token_probe import TokenProbe
from vfmtok.metrics.frechet import FeatureStatistics, frechet_distance
from vfmtok.metrics.inception_score import SPLITS, InceptionScore
from vfmtok.metrics.pixels import Distance
from vfmtok.metrics.usage import CodeCounter

if TYPE_CHECKING:  # they need torch-fidelity, which an evaluation without FID does not
    from vfmtok.evaluation.inception import Inception
    from vfmtok.evaluation.reference_file import Reference

ENCODER_DISTANCE = "encoder_distance"
PIXEL_NAMES = ("psnr", "ssim", "ssim_data_range_2")


@dataclass(frozen=True)
class Measures:
    """What is measured beyond the pixels. Without ``inception`` there is neither rFID nor rIS, without ``lpips`` no
    LPIPS; without ``reference`` rFID compares with the originals."""

    inception: Inception | None = None
    reference: Reference | None = None
    lpips: Distance | None = None
    lpips_sha256: str | None = None  # of its weights, for the protocol
    distance: EncoderDistance | None = None
    probe: TokenProbe | None = None
    notes: tuple[str, ...] = ()  # why something is left out, for the results
    resize: Resize = "bicubic"
    protocol: PixelProtocol = "ours"

    @property
    def pixels(self) -> Pixels:
        return PIXEL_PROTOCOLS[self.protocol]

    @property
    def value_names(self) -> tuple[str, ...]:
        """Of what every image has one value of."""
        return (*PIXEL_NAMES, *self.distances)

    @property
    def distances(self) -> dict[str, Distance]:
        found = {"lpips": self.lpips, ENCODER_DISTANCE: self.distance}
        return {name: distance for name, distance in found.items() if distance is not None} | dict(self.pixels.further)

    @property
    def said(self) -> str:
        """What a number's protocol adds of how images became the pixels."""
        return self.pixels.said + PROTOCOLS[self.resize]


class FinishedBlocks:
    """All blocks, of which every process reads its share for the sums over features.

    Raises DataError if blocks are missing.
    """

    def __init__(self, store: jobs.Blocks, world: distributed.World):
        self.store, self.places = store, store.check_complete()
        indices = [store.read(place, "indices")[0] for place in self.places]
        self.indices = np.concatenate(indices)  # (n,)
        self._starts = np.cumsum([0, *map(len, indices)])  # of each block among the good images
        first, last = (len(self.places) * share // world.size for share in (world.rank, world.rank + 1))
        self._share = range(first, last)

    def whole(self, name: str) -> np.ndarray:
        """(n,...) of all good images in their order."""
        return np.concatenate([self.store.read(place, name)[0] for place in self.places])

    def shared(self, *names: str):
        """For each block of this process's share: the places (b,) among the n good images, and the arrays."""
        for number in self._share:
            places = torch.arange(self._starts[number], self._starts[number + 1])
            yield places, *map(torch.from_numpy, self.store.read(self.places[number], *names))

    def check_bad(self, records: RecordDataset) -> None:
        check_bad(self.store.count - len(self.indices), records)

    def notes(self) -> list[str]:
        bad = sorted(set(range(self.store.count)) - set(self.indices.tolist()))
        return [f"{len(bad)} bad records skipped: {', '.join(map(str, bad))}"] if bad else []


def all_numbers(found: FinishedBlocks, code: Code, measures: Measures, world: distributed.World, size: int) -> Measured:
    """Results from the blocks (of Inception only in the first process); every process must call it.

    Raises DataError, the same on all processes: a block is damaged.
    """
    segments = list(zip(code.segments, code.slices(), strict=True)) if isinstance(code, Ids) else []
    counters = [CodeCounter(segment.size) for segment, _ in segments]
    with distributed.together():  # all blocks are read before the processes add up what they found
        features = _read_features(found, measures, world) if measures.inception is not None else None
        pixels = _pixel_numbers(found, measures, size)
        for _, ids in found.shared("ids") if segments else ():
            for counter, (_, place) in zip(counters, segments, strict=True):
                counter.update(ids[:, place])
    with distributed.together():
        results = _inception_numbers(features, found, measures, world, size) if features is not None else Measured()
        usages = [counter.compute() for counter in counters]
    results.numbers += pixels
    for number, ((segment, _), usage) in enumerate(zip(segments, usages, strict=True)):
        which = f", {_place_of(segment)}" if len(segments) > 1 else ""
        name = f" of segment {number + 1}" if len(segments) > 1 else ""
        over = f"over {usage.tokens:,} tokens of {len(found.indices):,} images{which}"
        frequencies = f"exp of the entropy of the codes' frequencies {over}"
        results.numbers += [
            Number(f"codebook usage{name}", 100 * usage.usage, f"% of {segment.size:,} codes occur {over}", 2),
            Number(f"codebook perplexity{name}", usage.perplexity, frequencies, 1),
        ]
    return results


def _place_of(segment: Segment) -> str:
    if segment.grid is None:
        return f"the {segment.count} without a place in it"
    return f"the {segment.grid[0]}x{segment.grid[1]} on its grid"


class _Features(NamedTuple):
    """Of Inception, as far as this process read them."""

    decoded: FeatureStatistics
    originals: FeatureStatistics  # nothing in it where there is a reference
    score: InceptionScore | None  # None: too few images


def _read_features(found: FinishedBlocks, measures: Measures, world: distributed.World) -> _Features:
    """Of this process's share of the blocks."""
    count = len(found.indices)
    score = InceptionScore(count) if count >= SPLITS else None
    decoded, originals = FeatureStatistics(2048), FeatureStatistics(2048)
    names = ("pool", "probabilities", *(["original_pool"] if measures.reference is None else []))
    for places, pool, probabilities, *original_pool in found.shared(*names):
        decoded.update(pool.to(world.device))
        if score is not None:
            score.update(probabilities, places)
        for features in original_pool:
            originals.update(features.to(world.device))
    return _Features(decoded, originals, score)


def _inception_numbers(
    features: _Features, found: FinishedBlocks, measures: Measures, world: distributed.World, size: int
) -> Measured:
    """rFID and rIS."""
    count, reference = len(found.indices), measures.reference
    gaussian = features.originals.compute() if reference is None else reference.pool
    samples = features.decoded.compute()
    scored = features.score.compute() if features.score is not None else None
    if not world.is_main:  # the distance takes seconds of all cores; one process is enough
        return Measured()
    against = f"the same {count:,} originals" if reference is None else reference.description
    about = f"{count:,} reconstructions at {size} px{measures.said}"
    network = measures.inception.description
    protocol = f"pool3; {about}, against {against}; {network}"
    results = Measured()
    results.add("rFID", lambda: frechet_distance(samples, gaussian, "rFID"), protocol)
    if scored is None:
        results.notes.append(f"rIS is left out: {SPLITS} splits need as many images")
    else:
        of = f"{SPLITS} splits in order, std {scored.std:.3f}; {about}; {network}"
        results.numbers.append(Number("rIS", scored.mean, of))
    return results


def _pixel_numbers(found: FinishedBlocks, measures: Measures, size: int) -> list[Number]:
    """Means over the images in their order: the same to the last bit, however they were shared."""
    at = f"mean over {len(found.indices):,} images, uint8 RGB at {size} px{measures.said}"
    protocols = {
        "psnr": ("PSNR", f"dB, {at}, peak 255"),
        "ssim": ("SSIM", f"{at}, 7x7 windows, data range 1 of [0,1] (correct)"),
        "ssim_data_range_2": ("SSIM (data range 2)", f"{at}; FLATTERING: the range published tokenizers used"),
        "lpips": ("LPIPS", f"{at}, LPIPS 0.1 VGG16, weights {(measures.lpips_sha256 or 'unknown')[:8]}"),
    }
    windows = "11x11 Gaussian windows of sigma 1.5, borders reflected, data range 2 of [-1,1]"
    protocols[GAUSSIAN_SSIM] = ("SSIM (Gaussian)", f"{at}, {windows}")
    if measures.distance is not None:
        protocols[ENCODER_DISTANCE] = (measures.distance.name, f"{at}, {measures.distance.protocol}")
    return [Number(protocols[n][0], float(found.whole(n).mean()), protocols[n][1], 4) for n in measures.value_names]
