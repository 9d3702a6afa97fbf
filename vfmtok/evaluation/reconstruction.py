"""How well a tokenizer reconstructs a dataset: rFID, rIS, PSNR, SSIM, LPIPS, codebook usage, and a picture.

Every image is cut to the tokenizer's size, encoded and decoded; original and reconstruction are both brought to the
evaluation's size in the same way (336 -> 256: bicubic, ``to_pixels``) and compared as uint8. Networks compute in
float32 without TF32. What a block of images gives goes to disk at once (parts.py): the same command again continues.

Shapes: N records, n good records, B batch, K tokens, S side of the tokenizer's images, E side of the evaluation's.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vfmtok import distributed
from vfmtok.data.code_cache import tokenizer_hash
from vfmtok.data.loader import BAD_FRACTION, Batch, ImageLoader
from vfmtok.data.order import BlockOrder
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.errors import DataError, SharedError
from vfmtok.evaluation import parts
from vfmtok.evaluation.codebook_usage import CodebookUsage
from vfmtok.evaluation.frechet import FeatureStatistics, frechet_distance
from vfmtok.evaluation.inception_score import SPLITS, InceptionScore
from vfmtok.evaluation.pixel_metrics import PixelMetrics
from vfmtok.evaluation.reconstruction_picture import draw_reconstructions, draw_sampling_points
from vfmtok.evaluation.report import Number, as_tree, collected_warnings, describe_reference, not_finite
from vfmtok.evaluation.there_and_back import there_and_back
from vfmtok.layers.precision import full_float32
from vfmtok.tokenizer.tokenizer import VFMTok

if TYPE_CHECKING:  # they need torch-fidelity, which an evaluation without FID does not
    from vfmtok.evaluation.inception import Inception
    from vfmtok.evaluation.reference import Reference

PIXEL_NAMES = ("psnr", "ssim", "ssim_data_range_2")
SHOWN = 4  # images of the picture from either end and the middle


@dataclass(frozen=True)
class Measures:
    """What is measured beyond the pixels. Without ``inception`` there is neither rFID nor rIS, without ``lpips`` (one
    distance (B,) for images (B,3,H,W) in [-1,1] twice) no LPIPS; ``reference`` None compares with the originals."""

    inception: Inception | None = None
    reference: Reference | None = None
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    notes: tuple[str, ...] = ()  # why something is left out, for the results

    @property
    def value_names(self) -> tuple[str, ...]:
        """Of what every image has one value of."""
        return PIXEL_NAMES if self.lpips is None else (*PIXEL_NAMES, "lpips")


def evaluate_reconstruction(
    tokenizer: VFMTok,
    records: RecordDataset,
    folder: Path,
    world: distributed.World,
    measures: Measures,
    *,
    size: int = 256,
    batch: int = 32,
    num_workers: int = 4,
    shown_tokens: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Measure, and leave results.json, images.csv and two pictures in ``folder``; every process must call it.

    Args:
        size: E.
        batch: B, of every process.
        shown_tokens: whose sampling points are drawn; None chooses four.

    Returns:
        the content of results.json: "numbers" by name with their protocol, "warnings", "notes", "job".

    Raises:
        VFMTokError: the same on all processes.
    """
    job = _job(tokenizer, records, measures, size)
    results = parts.begin_together(folder, job, world)
    if results is not None:
        return results
    store = parts.Parts(folder, len(records))
    share = store.share_to_do(batch, world)
    with distributed.together():
        _reconstruct_blocks(tokenizer, records, share, store, world, measures, size, num_workers)
    with distributed.together():
        found = _Found(store, world)
        found.check_bad(records)
    with distributed.together():
        numbers, warnings = _numbers(found, tokenizer, measures, world, size)
    with distributed.together():
        if world.is_main:
            results = {
                "job": job,
                "numbers": as_tree(numbers),
                "warnings": warnings + not_finite(numbers),
                "notes": [*measures.notes, *found.notes()],
                "pictures": _draw(tokenizer, records, found, folder, world, size, shown_tokens),
            }
            _write_table(folder / "images.csv", records, found, measures.value_names)
            parts.finish(folder, results)
    return distributed.gather(results)[0]


def _job(tokenizer: VFMTok, records: RecordDataset, measures: Measures, size: int) -> dict[str, Any]:
    fingerprint = tokenizer_hash(tokenizer)
    if len(set(distributed.gather(fingerprint))) > 1:
        raise SharedError("the processes built different tokenizers: set encoder.weights, random weights differ")
    network, reference = measures.inception, measures.reference
    return {
        "tokenizer": fingerprint,
        "dataset": records.fingerprint,
        "count": len(records),
        "image size": tokenizer.config.image_size,
        "evaluation size": size,
        "Inception": network.protocol() if network is not None else None,
        "reference": reference.sha256 if reference is not None else None,
        "LPIPS": measures.lpips is not None,
    }


# --------------------------------------------------------------------------------------
# Block by block
# --------------------------------------------------------------------------------------


def _reconstruct_blocks(
    tokenizer: VFMTok,
    records: RecordDataset,
    blocks: list[np.ndarray],
    store: parts.Parts,
    world: distributed.World,
    measures: Measures,
    size: int,
    num_workers: int,
) -> None:
    """Fill this process's share of the parts. Raises DataError: too many bad records, or the disk refuses."""
    crop = EvaluationCrop(tokenizer.config.image_size)
    loader = ImageLoader(records, crop, BlockOrder(blocks), num_workers=num_workers, max_bad_fraction=None)
    bad = 0
    with contextlib.closing(loader), tqdm(total=sum(map(len, blocks)), unit="image", disable=not world.is_main) as bar:
        for rows, found in zip(blocks, loader, strict=True):
            arrays = measure_block(tokenizer, found, rows, measures, size, world.device)
            store.write(rows, arrays)
            bad += len(rows) - len(arrays["indices"])
            _check_bad(bad, records)
            bar.update(len(rows))


@torch.no_grad()
def measure_block(
    tokenizer: VFMTok, found: Batch, rows: np.ndarray, measures: Measures, size: int, device: torch.device
) -> dict[str, np.ndarray]:
    """What is kept of a block: all that the numbers need of its good images, by name.

    The loader puts other records in the place of bad ones; here those are left out again, none counts twice.
    """
    ids, *both = there_and_back(tokenizer, found.images.to(device, non_blocking=True), size)
    with full_float32(device.type):
        originals, decoded = (pixels.permute(0, 3, 1, 2).contiguous() for pixels in both)  # (B,3,E,E)
        values = PixelMetrics(PIXEL_NAMES, measures.lpips).update(originals, decoded)
    arrays = {"indices": torch.from_numpy(rows), "labels": found.labels, "ids": ids.int(), **values}
    if measures.inception is not None:
        features = measures.inception(decoded)
        arrays |= {"pool": features.pool, "probabilities": features.probabilities}
        if measures.reference is None:
            arrays["original_pool"] = measures.inception(originals).pool
    good = found.indices.numpy() == rows
    return {name: tensor.cpu().numpy()[good] for name, tensor in arrays.items()}


def _check_bad(bad: int, records: RecordDataset) -> None:
    if bad > max(1, BAD_FRACTION * len(records)):
        raise DataError(
            f"{bad} of the {len(records)} records of {records.path} are bad, more than {BAD_FRACTION:.0%}: mend the "
            "dataset (`vfmtok stats` lists them)"
        )


class _Found:
    """All parts, of which every process reads its share for the sums over features.

    Raises DataError if parts are missing.
    """

    def __init__(self, store: parts.Parts, world: distributed.World):
        self.store, self.places = store, store.check_complete()
        indices = [store.read(place, "indices")[0] for place in self.places]
        self.indices = np.concatenate(indices)  # (n,)
        self._starts = np.cumsum([0, *map(len, indices)])  # of each part among the good images
        first, last = (len(self.places) * part // world.size for part in (world.rank, world.rank + 1))
        self._share = range(first, last)

    def whole(self, name: str) -> np.ndarray:
        """(n,...) of all good images in their order."""
        return np.concatenate([self.store.read(place, name)[0] for place in self.places])

    def shared(self, *names: str):
        """For each part of this process's share: the places (b,) among the n good images, and the arrays."""
        for number in self._share:
            places = torch.arange(self._starts[number], self._starts[number + 1])
            yield places, *map(torch.from_numpy, self.store.read(self.places[number], *names))

    def check_bad(self, records: RecordDataset) -> None:
        _check_bad(self.store.count - len(self.indices), records)

    def notes(self) -> list[str]:
        bad = sorted(set(range(self.store.count)) - set(self.indices.tolist()))
        return [f"{len(bad)} bad records skipped: {', '.join(map(str, bad))}"] if bad else []


# --------------------------------------------------------------------------------------
# The numbers
# --------------------------------------------------------------------------------------


def _numbers(
    found: _Found, tokenizer: VFMTok, measures: Measures, world: distributed.World, size: int
) -> tuple[list[Number], list[str]]:
    """All results and the warnings about them (in the first process); every process must call it."""
    numbers: list[Number] = []
    with collected_warnings() as warnings:
        if measures.inception is not None:
            numbers += _inception_numbers(found, measures, world, size)
    numbers += _pixel_numbers(found, measures, size)
    codebook = CodebookUsage(tokenizer.config.quantizer.codebook_size)
    for _, ids in found.shared("ids"):
        codebook.update(ids)
    usage = codebook.compute()
    over = f"over {usage.tokens:,} tokens of {len(found.indices):,} images"
    numbers += [
        Number("codebook usage", 100 * usage.usage, f"% of {codebook.codebook_size:,} codes occur {over}", 2),
        Number("codebook perplexity", usage.perplexity, f"exp of the entropy of the codes' frequencies {over}", 1),
    ]
    return numbers, warnings


def _inception_numbers(found: _Found, measures: Measures, world: distributed.World, size: int) -> list[Number]:
    count, width = len(found.indices), 2048
    score = InceptionScore(count) if count >= SPLITS else None
    decoded, originals = FeatureStatistics(width), FeatureStatistics(width)
    names = ("pool", "probabilities", *(["original_pool"] if measures.reference is None else []))
    for places, pool, probabilities, *original_pool in found.shared(*names):
        decoded.update(pool.to(world.device))
        if score is not None:
            score.update(probabilities, places)
        for features in original_pool:
            originals.update(features.to(world.device))
    reference = measures.reference
    gaussian = originals.compute() if reference is None else reference.pool
    samples = decoded.compute()
    scored = score.compute() if score is not None else None
    if not world.is_main:  # the distance takes seconds of all cores; one process is enough
        return []
    against = f"the same {count:,} originals" if reference is None else describe_reference(reference)
    protocol = f"{count:,} reconstructions at {size} px against {against}; Inception 2015-12-05 pool3, float32"
    numbers = [Number("rFID", frechet_distance(samples, gaussian, "rFID"), protocol)]
    if scored is not None:
        numbers.append(Number("rIS", scored.mean, f"{SPLITS} splits in order, std {scored.std:.3f}; {count:,} images"))
    return numbers


def _pixel_numbers(found: _Found, measures: Measures, size: int) -> list[Number]:
    """Means over the images in their order: the same to the last bit, however they were shared."""
    at = f"mean over {len(found.indices):,} images, uint8 RGB at {size} px"
    protocols = {
        "psnr": ("PSNR", f"dB, {at}, peak 255"),
        "ssim": ("SSIM", f"{at}, 7x7 windows, data range 1 of [0,1] (correct)"),
        "ssim_data_range_2": ("SSIM (data range 2)", f"{at}; FLATTERING: the range published tokenizers used"),
        "lpips": ("LPIPS", f"{at}, LPIPS 0.1 VGG16"),
    }
    return [Number(protocols[n][0], float(found.whole(n).mean()), protocols[n][1], 4) for n in measures.value_names]


# --------------------------------------------------------------------------------------
# What one looks at
# --------------------------------------------------------------------------------------


def _draw(
    tokenizer: VFMTok,
    records: RecordDataset,
    found: _Found,
    folder: Path,
    world: distributed.World,
    size: int,
    shown_tokens: tuple[int, ...] | None,
) -> dict[str, list[int]]:
    """reconstructions.png and sampling_points.png; the records on them."""
    psnr, groups = found.whole("psnr"), {}
    order = np.argsort(psnr, kind="stable")  # (n,) from the worst to the best
    count = min(SHOWN, max(1, len(order) // 3))
    middle = (len(order) - count) // 2
    chosen = {"worst": order[:count], "median": order[middle : middle + count], "best": order[::-1][:count]}
    crop, shown = EvaluationCrop(tokenizer.config.image_size), {}
    for name, places in chosen.items():
        indices = found.indices[places].tolist()
        crops = torch.stack([crop(records[index].image) for index in indices]).to(world.device)
        _, originals, decoded = there_and_back(tokenizer, crops, size)
        captions = [f"record {index}, {psnr[place]:.2f} dB" for index, place in zip(indices, places, strict=True)]
        groups[name] = (originals.cpu().numpy(), decoded.cpu().numpy(), captions)
        shown[name] = (indices, to_unit_range(crops))
    title = f"Original, reconstruction, error: {len(order):,} images by PSNR at {size} px"
    _save(draw_reconstructions(groups, title), folder / "reconstructions.png")
    points = draw_sampling_points(tokenizer, shown["median"][1], shown_tokens)
    if points is not None:
        _save(points, folder / "sampling_points.png")
    return {name: indices for name, (indices, _) in shown.items()}


def _save(picture, path: Path) -> None:
    parts.replace_file(path, lambda file: picture.save(file, "PNG"))


def _write_table(path: Path, records: RecordDataset, found: _Found, names: tuple[str, ...]) -> None:
    """A line for every image, for those who want to know which ones are bad."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["record", "class", *names])
    for index, label, *values in zip(found.indices, *map(found.whole, ("labels", *names)), strict=True):
        table.writerow([index, records.class_name(int(label)), *(f"{value:.6g}" for value in values)])
    parts.replace_file(path, lambda file: file.write(text.getvalue().encode("utf-8", "replace")))
