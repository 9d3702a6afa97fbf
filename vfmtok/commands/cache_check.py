"""The checks that end a cache: entries of `vfmtok codes` are decoded, drawn beside the images and measured, and codes
counted; of imported codes there are no images, so some are decoded to be looked at.

Shapes: n entries, S side; ... is a code as it is stored, (K,) or (M,C,h,w).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vfmtok import distributed
from vfmtok.code import Code, Ids, Latents
from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCacheWriter, as_code
from vfmtok.data.dataset_folder import open_dataset
from vfmtok.data.latent_cache import LatentCache, open_cache, shown
from vfmtok.data.latent_statistics import Per
from vfmtok.data.order import evenly_spaced
from vfmtok.data.records import RecordDataset
from vfmtok.data.views import View
from vfmtok.errors import DataError
from vfmtok.metrics.pixels import psnr
from vfmtok.metrics.usage import count_codes, usage_of_counts
from vfmtok.pictures.contact_sheet import draw_pairs
from vfmtok.pictures.latent_channels import LATENTS_SHEET, draw_channels
from vfmtok.pictures.rows import draw_rows

CHECKED_ENTRIES = 32  # decoded into the contact sheet
SHOWN = 8  # of imported codes


def finish(
    tokenizer: nn.Module,
    records: RecordDataset,
    transform: Callable,
    views: list[View],
    writer: CodeCacheWriter,
    device: torch.device,
    facts: dict[str, Any],
) -> None:
    """Decode entries, draw and measure them, count ids; then, and only then, the cache is complete.

    Args:
        facts: what else is to be kept in cache.json.

    Raises:
        DataError: an entry can't be decoded, or the disk refuses.
    """
    progress, codes = writer.progress(), writer.written_rows()
    good = np.flatnonzero(progress == code_cache.DONE)
    if not len(good):
        raise DataError(f"{writer.path}: no entry to decode")
    rows = good[evenly_spaced(CHECKED_ENTRIES, len(good))]
    size = tokenizer.config.image_size
    originals, decoded, labels = [], [], []
    for row in rows.tolist():
        record = records[row]
        crops = transform(record.image, 0, row)
        originals.append((crops if crops.ndim == 3 else crops[0]).permute(1, 2, 0).numpy())  # (S,S,3), view 0
        entry = as_code(codes[row, :1], tokenizer.code).to(device)  # (1,K) or (1,C,h,w)
        decoded.append(tokenizer.decode_to_uint8(entry, size)[0].cpu().numpy())
        labels.append(record.label)
    originals, decoded = np.stack(originals), np.stack(decoded)  # (n,S,S,3)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255 for images in (originals, decoded))
    values = psnr(*pixels).numpy()
    protocol = (
        f"mean over {len(rows)} entries of view '{views[0].name}' of the PSNR of uint8 RGB at {size} px, peak 255, "
        "decoded in float32"
    )
    names = [records.class_name(label) for label in labels]
    captions = [(name, f"{value:.1f} dB") for name, value in zip(names, values, strict=True)]
    title = (
        f"Original and decoded, {len(rows)} of {len(records):,} entries: mean PSNR {values.mean():.2f} dB at {size} px"
    )
    _save(draw_pairs(originals, decoded, captions, title), writer.path / "contact_sheet.png")
    if isinstance(tokenizer.code, Latents):
        latents = as_code(codes[rows, 0], tokenizer.code).numpy()  # (n,C,h,w)
        _save(draw_channels(originals, decoded, latents, names), writer.path / LATENTS_SHEET)
    writer.finish(
        round_trip={"psnr_db": float(values.mean()), "entries": rows.tolist(), "protocol": protocol},
        **_usages(codes, tokenizer.code),
        **facts,
    )
    _report(open_cache(writer.path))


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; all codes are written, run again") from None


def _usages(codes: np.ndarray, code: Code) -> dict[str, Any]:
    """Of ids (N,V,K): how much of each codebook occurs, and of the least used one."""
    if not isinstance(code, Ids):
        return {}
    counted = zip(code.slices(), code.segments, strict=True)
    usages = [_usage_of(count_codes(codes[..., part], segment.size)) for part, segment in counted]
    least = min(usages, key=lambda usage: usage["used"] / usage["size"])
    return {"codebook_usage": least, **({"codebook_usages": usages} if len(usages) > 1 else {})}


def _usage_of(counts: Tensor) -> dict[str, float]:
    return {"used": int((counts > 0).sum()), "size": len(counts), "perplexity": usage_of_counts(counts)[1]}


def _report(cache: code_cache.Cache) -> None:
    found = cache.metadata
    check = found["round_trip"]
    views, ranks = cache.num_views // cache.num_ranks, f" x {cache.num_ranks} ranks" if cache.num_ranks > 1 else ""
    print(f"{cache.path}: {len(cache):,} records x {views} views{ranks} x {size_of(cache)}")
    if found["replaced_rows"]:
        print(
            f"bad records, replaced by the next good one: {len(found['replaced_rows'])} (replaced_rows in cache.json)"
        )
    print(f"round-trip PSNR {check['psnr_db']:.2f} dB ({check['protocol']})")
    if isinstance(cache, LatentCache):
        print(shown(cache.statistics))
    else:
        _report_usage(cache)
    print(f"contact sheet {cache.path / 'contact_sheet.png'}", flush=True)


def size_of(cache: code_cache.Cache) -> str:
    """Of one code, for people."""
    if not isinstance(cache, LatentCache):
        return f"{cache.num_tokens} tokens"
    values = "mean and standard deviation of " if cache.has_moments else ""
    return f"{values}{cache.code}, {cache.metadata['latent_dtype']}"


def _report_usage(cache: code_cache.CodeCache) -> None:
    found = cache.metadata
    usages = found.get("codebook_usages", [found["codebook_usage"]])
    for usage, segment in zip(usages, cache.code.segments, strict=True):
        which = f" of the {segment.count} tokens" if len(usages) > 1 else ""
        print(
            f"codebook usage{which} {usage['used'] / usage['size']:.1%} ({usage['used']} of {usage['size']} codes "
            f"occur, counted over all records and views; perplexity {usage['perplexity']:.1f})"
        )


def change_statistics(path: str, per: Per) -> None:
    """Measure a complete latent cache again, if its statistics are others. Every process must call it.

    Raises DataError.
    """
    cache = LatentCache(path)
    found = cache.metadata["statistics"]
    if found["per"] != per or found.get("source") == "published":
        cache.measure_again(per)
        distributed.print_main(f"{path}: its statistics are now measured, per {per}")


# --------------------------------------------------------------------------------------
# Imported codes
# --------------------------------------------------------------------------------------


def draw_decoded(tokenizer: nn.Module, writer: CodeCacheWriter, labels: np.ndarray, classes: list[str]) -> None:
    """A few entries decoded: whether codes and tokenizer belong together is seen at once. Raises DataError."""
    rows = evenly_spaced(SHOWN, len(labels))
    codes, size = writer.written_rows(), tokenizer.config.image_size
    entries = [as_code(codes[row, :1], tokenizer.code) for row in rows]  # n x (1,...)
    pixels = torch.stack([tokenizer.decode_to_uint8(entry, size) for entry in entries]).numpy()  # (n,1,S,S,3)
    names = [classes[label] for label in labels[rows]]
    _save(draw_rows(pixels, names, f"Decoded: {writer.path.name}"), writer.path / "contact_sheet.png")


def classes_of(dataset: str | None, labels: np.ndarray, source: Path) -> list[str]:
    """The names of the classes of a prepared dataset; without one the labels themselves. Raises DataError."""
    count = int(labels.max()) + 1
    if dataset is None:
        return [str(label) for label in range(count)]
    classes = open_dataset(dataset).classes
    if classes is None or len(classes) != count:
        has = "no names of classes" if classes is None else f"{len(classes)} classes"
        raise DataError(f"{dataset} has {has}, the labels of {source} are of {count}")
    return classes
