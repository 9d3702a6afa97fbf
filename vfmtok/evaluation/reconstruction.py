"""How well a tokenizer reconstructs a dataset: rFID, rIS, PSNR, SSIM, LPIPS, codebook usage, and pictures.

Every image is cut to the tokenizer's size, encoded and decoded; original and reconstruction are both brought to the
evaluation's size in the same way (336 -> 256: bicubic, ``to_pixels``; another way is in resizing.py) and compared as
uint8. Networks compute in float32 without TF32. Each block of images is written at once (jobs.py): the same command
again continues.

Shapes: N records, n good records, B batch, K tokens, S side of the tokenizer's images, E side of the evaluation's.
"""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vfmtok import distributed
from vfmtok.code import Ids
from vfmtok.data.loader import Batch, ImageLoader, check_bad
from vfmtok.data.order import BlockOrder
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import to_unit_range
from vfmtok.errors import SharedError
from vfmtok.evaluation import jobs
from vfmtok.evaluation.pixel_protocols import PIXEL_PROTOCOLS, SEED, Pixels
from vfmtok.evaluation.reconstruction_numbers import PIXEL_NAMES, FinishedBlocks, Measures, all_numbers
from vfmtok.evaluation.resizing import Resize, resize_with_pillow
from vfmtok.evaluation.results import as_tree, not_finite
from vfmtok.evaluation.sampling_points import check_tokens, picture_of_points
from vfmtok.files import replace_file
from vfmtok.generators.counter_random import Draws
from vfmtok.layers.precision import full_float32
from vfmtok.metrics.pixels import PixelMetrics, psnr
from vfmtok.pictures.reconstruction import draw_reconstructions
from vfmtok.tokenizers.contract import Tokenizer, code_of, to_pixels
from vfmtok.weights.hashing import tokenizer_hash

SHOWN = 4  # images of the picture from either end and the middle


class RoundTrip(NamedTuple):
    """Images through the tokenizer and back, both sides as the pixels that are compared and shown."""

    code: Tensor  # ids (B,K) int64 or latents (B,C,h,w)
    originals: Tensor  # (B,E,E,3) uint8
    decoded: Tensor  # (B,E,E,3) uint8

    def psnr(self) -> Tensor:
        """(B,) float64 in dB, on the CPU, peak 255; equal images give infinity."""
        x, y = (pixels.cpu().permute(0, 3, 1, 2).double() / 255 for pixels in (self.originals, self.decoded))
        return psnr(x, y)


@torch.no_grad()
def round_trip(
    tokenizer: Tokenizer,
    crops: Tensor,
    size: int,
    resize: Resize = "bicubic",
    pixels: Pixels = PIXEL_PROTOCOLS["ours"],
    records: Tensor | None = None,
) -> RoundTrip:
    """crops (B,3,S,S) uint8 on the tokenizer's device -> both sides brought to ``size`` alike, in full float32.

    Args:
        records: (B,) int64, by which latents are drawn where the protocol samples them.
    """
    images = to_unit_range(crops)  # (B,3,S,S)
    with full_float32(images.device.type):
        drawn = pixels.samples and getattr(tokenizer, "encode_draws", False)
        draws = {"draws": Draws(SEED, records.to(images.device))} if drawn else {}
        code = code_of(tokenizer.encode(images, **draws), tokenizer.code)
        first = size if resize == "bicubic" else images.shape[-1]
        both = to_pixels(images, first), to_pixels(tokenizer.decode(code), first, pixels.offset)
        if resize == "bicubic":
            return RoundTrip(code, *both)
    return RoundTrip(code, *(resize_with_pillow(pixels, size) for pixels in both))


def evaluate_reconstruction(
    tokenizer: Tokenizer,
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
    with distributed.together():  # both come last: hours should not end in such a mistake
        if shown_tokens is not None:
            check_tokens(tokenizer, shown_tokens, "--tokens")
        if measures.probe is not None:
            measures.probe.check(tokenizer, records)
    job = _job(tokenizer, records, measures, size)
    results = jobs.begin_together(
        folder, job, world, unsaid={"resize": "bicubic", "pixel protocol": "ours", "distance": None}
    )
    if results is not None:
        if shown_tokens is not None:  # drawn again: nothing else depends on them
            with distributed.together():
                if world.is_main:
                    _draw_points(tokenizer, records, results["pictures"]["median"], folder, world, shown_tokens)
        return results
    store = jobs.Blocks(folder, len(records))
    share = store.share_to_do(batch, world)
    with distributed.together():
        _reconstruct_blocks(tokenizer, records, share, store, world, measures, size, num_workers)
    with distributed.together():
        found = FinishedBlocks(store, world)
        found.check_bad(records)
    measured = all_numbers(found, tokenizer.code, measures, world, size)
    with distributed.together():
        if measures.probe is not None:
            measures.probe.measure(tokenizer, records, batch, num_workers, world, measured)
    with distributed.together():
        if world.is_main:
            results = {
                "job": job,
                "numbers": as_tree(measured.numbers),
                "warnings": measured.warnings + not_finite(measured.numbers),
                "notes": [*measures.notes, *measured.notes, *found.notes()],
                "pictures": _draw(tokenizer, records, found, measures, folder, world, size, shown_tokens),
            }
            _write_table(folder / "images.csv", records, found, measures.value_names)
            jobs.finish(folder, results)
    return distributed.gather(results)[0]


def _job(tokenizer: Tokenizer, records: RecordDataset, measures: Measures, size: int) -> dict[str, Any]:
    fingerprint = tokenizer_hash(tokenizer)
    if len(set(distributed.gather(fingerprint))) > 1:
        raise SharedError("the processes built different tokenizers: set encoder.weights, random weights differ")
    network, reference, distance = measures.inception, measures.reference, measures.distance
    return {
        "tokenizer": fingerprint,
        "dataset": records.fingerprint,
        "count": len(records),
        "image size": tokenizer.config.image_size,
        "evaluation size": size,
        "Inception": network.protocol() if network is not None else None,
        "reference": reference.identity if reference is not None else None,
        "LPIPS": (measures.lpips_sha256 or "unknown") if measures.lpips is not None else None,
        "distance": f"{distance.name}, {distance.protocol}" if distance is not None else None,
        "linear probe": measures.probe.job() if measures.probe else None,
        "resize": measures.resize,
        "pixel protocol": measures.protocol,
    }


# --------------------------------------------------------------------------------------
# Block by block
# --------------------------------------------------------------------------------------


def _reconstruct_blocks(
    tokenizer: Tokenizer,
    records: RecordDataset,
    blocks: list[np.ndarray],
    store: jobs.Blocks,
    world: distributed.World,
    measures: Measures,
    size: int,
    num_workers: int,
) -> None:
    """Compute this process's share of the blocks. Raises DataError: too many bad records, or the disk refuses."""
    crop = measures.pixels.crop(tokenizer.config.image_size)
    loader = ImageLoader(records, crop, BlockOrder(blocks), num_workers=num_workers, max_bad_fraction=None)
    bad = 0
    with contextlib.closing(loader), tqdm(total=sum(map(len, blocks)), unit="image", disable=not world.is_main) as bar:
        for rows, found in zip(blocks, loader, strict=True):
            arrays = measure_block(tokenizer, found, rows, measures, size, world.device)
            store.write(rows, arrays)
            bad += len(rows) - len(arrays["indices"])
            check_bad(bad, records)
            bar.update(len(rows))


@torch.no_grad()
def measure_block(
    tokenizer: Tokenizer, found: Batch, rows: np.ndarray, measures: Measures, size: int, device: torch.device
) -> dict[str, np.ndarray]:
    """What is kept of a block: all that the numbers need of its good images, by name.

    The loader puts other records in the place of bad ones; here those are left out again, none counts twice.
    """
    crops, records = found.images.to(device, non_blocking=True), torch.from_numpy(rows)
    code, *both = round_trip(tokenizer, crops, size, measures.resize, measures.pixels, records)
    with full_float32(device.type):
        originals, decoded = (pixels.permute(0, 3, 1, 2).contiguous() for pixels in both)  # (B,3,E,E)
        values = PixelMetrics(PIXEL_NAMES, measures.distances).update(originals, decoded)
    arrays = {"indices": torch.from_numpy(rows), "labels": found.labels, **values}
    if isinstance(tokenizer.code, Ids):  # for the usage of codebooks
        arrays["ids"] = code.int()
    if measures.inception is not None:
        features = measures.inception(decoded)
        arrays |= {"pool": features.pool, "probabilities": features.probabilities}
        if measures.reference is None:
            arrays["original_pool"] = measures.inception(originals).pool
    good = found.indices.numpy() == rows
    return {name: tensor.cpu().numpy()[good] for name, tensor in arrays.items()}


# --------------------------------------------------------------------------------------
# What one looks at
# --------------------------------------------------------------------------------------


def _draw(
    tokenizer: Tokenizer,
    records: RecordDataset,
    found: FinishedBlocks,
    measures: Measures,
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
    for name, places in chosen.items():
        indices = found.indices[places].tolist()
        crops = _crops(records, indices, tokenizer, world, measures.pixels)
        drawn_by = torch.tensor(indices)
        _, originals, decoded = round_trip(tokenizer, crops, size, measures.resize, measures.pixels, drawn_by)
        captions = [f"record {index}, {psnr[place]:.2f} dB" for index, place in zip(indices, places, strict=True)]
        groups[name] = (originals.cpu().numpy(), decoded.cpu().numpy(), captions)
    title = f"Original, reconstruction, error: {len(order):,} images by PSNR at {size} px"
    _save(draw_reconstructions(groups, title), folder / "reconstructions.png")
    shown = {name: found.indices[places].tolist() for name, places in chosen.items()}
    _draw_points(tokenizer, records, shown["median"], folder, world, shown_tokens)
    return shown


def _draw_points(
    tokenizer: Tokenizer,
    records: RecordDataset,
    indices: list[int],
    folder: Path,
    world: distributed.World,
    tokens: tuple[int, ...] | None,
) -> None:
    """sampling_points.png of these records, if the tokenizer has such points."""
    images = to_unit_range(_crops(records, indices, tokenizer, world, PIXEL_PROTOCOLS["ours"]))
    points = picture_of_points(tokenizer, images, tokens)
    if points is not None:
        _save(points, folder / "sampling_points.png")


def _crops(
    records: RecordDataset,
    indices: list[int],
    tokenizer: Tokenizer,
    world: distributed.World,
    pixels: Pixels,
) -> Tensor:
    """uint8 (b,3,S,S), cut as they were measured."""
    crop = pixels.crop(tokenizer.config.image_size)
    return torch.stack([crop(records[index].image) for index in indices]).to(world.device)


def _save(picture, path: Path) -> None:
    replace_file(path, lambda file: picture.save(file, "PNG"))


def _write_table(path: Path, records: RecordDataset, found: FinishedBlocks, names: tuple[str, ...]) -> None:
    """A line for every image: which ones are reconstructed badly?"""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["record", "class", *names])
    for index, label, *values in zip(found.indices, *map(found.whole, ("labels", *names)), strict=True):
        table.writerow([index, records.class_name(int(label)), *(f"{value:.6g}" for value in values)])
    replace_file(path, lambda file: file.write(text.getvalue().encode("utf-8", "replace")))
