"""What a dataset holds: one pass over its records, and the summary as text."""

import hashlib
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from tqdm import tqdm

from vfmtok.data import image_files
from vfmtok.data.dataset_folder import CHUNK
from vfmtok.data.ordered_pool import default_workers, ordered_results
from vfmtok.data.records import RecordDataset
from vfmtok.errors import DataError

BARS = 30  # up to this many classes the histogram shows each
EXAMPLES = 8  # images kept per class for the sheet


@dataclass
class Summary:
    """What one pass over a dataset finds."""

    labels: Counter = field(default_factory=Counter)
    widths: Counter = field(default_factory=Counter)  # value -> records; as many as there are values, not records
    heights: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)  # encoded bytes
    formats: Counter = field(default_factory=Counter)
    corrupt: list[str] = field(default_factory=list)  # what is wrong with each bad record
    examples: dict[int, list[int]] = field(default_factory=dict)  # label -> indices for the sheet


def summarize(dataset: RecordDataset, workers: int | None = None, decode: bool = True) -> Summary:
    """One pass over all records, in parallel."""
    tasks = (range(i, min(i + CHUNK, len(dataset))) for i in range(0, len(dataset), CHUNK))
    workers = default_workers(len(dataset)) if workers is None else workers
    summary, index = Summary(), 0
    with tqdm(total=len(dataset), desc=f"read {dataset.path.name}", unit=" images") as bar:
        for results in ordered_results(partial(_look_at, dataset, decode), tasks, workers):
            for result in results:
                _add(summary, index, result)
                index += 1
            bar.update(len(results))
    return summary


Look = tuple[int, int, int, int, str] | str  # (label, width, height, bytes, format), or what is wrong


def _look_at(dataset: RecordDataset, decode: bool, indices: range) -> list[Look]:
    results: list[Look] = []
    for index in indices:
        try:
            record = dataset[index]
            image = image_files.open_image(record.image, decode=decode)
            results.append((record.label, *image.size, len(record.image), image.format))
        except image_files.NotAnImage as error:
            results.append(f"record {index} ({record.name or 'no name'}): {error}")
        except DataError as error:
            results.append(str(error))
    return results


def _add(summary: Summary, index: int, result: Look) -> None:
    if isinstance(result, str):
        summary.corrupt.append(result)
        return
    label, width, height, size, image_format = result
    summary.labels[label] += 1
    summary.widths[width] += 1
    summary.heights[height] += 1
    summary.sizes[size] += 1
    summary.formats[image_format] += 1
    kept = summary.examples.setdefault(label, [])
    kept.append(index)
    if len(kept) > EXAMPLES:  # keep those of smallest hash: the same on every run, spread over the class
        kept.remove(max(kept, key=_spread))


def _spread(index: int) -> bytes:
    return hashlib.sha256(str(index).encode()).digest()


# --------------------------------------------------------------------------------------
# Text
# --------------------------------------------------------------------------------------


def report_lines(title: str, dataset: RecordDataset, summary: Summary, decoded: bool) -> list[str]:
    """The text of one dataset."""
    known = f"{len(dataset.classes)} classes" if dataset.classes else f"{len(summary.labels)} labels without names"
    lines = [f"{title}: {len(dataset)} records, {known}, fingerprint {dataset.fingerprint[:16]}"]
    if summary.sizes:
        total = sum(size * count for size, count in summary.sizes.items()) / 2**20
        lines += [
            f"  width      {_spread_of(summary.widths)} px",
            f"  height     {_spread_of(summary.heights)} px",
            f"  file size  {_spread_of(summary.sizes, 1024)} KiB, {total:.1f} MiB in all",
            f"  formats    {', '.join(f'{name} {count}' for name, count in summary.formats.most_common())}",
        ]
    how = "undecodable or damaged" if decoded else "damaged or without a readable header (pixels were not decoded)"
    lines.append(f"  corrupt    {len(summary.corrupt)} records are {how}{_skipped(dataset)}")
    lines += [f"             {reason}" for reason in summary.corrupt[:5]]
    return lines + _histogram(dataset, summary.labels)


def _spread_of(values: Counter, unit: int = 1) -> str:
    """Of values and how often each occurs, in units of ``unit``."""
    ordered = sorted(values)
    ends = np.cumsum([values[value] for value in ordered])
    middle = [ordered[np.searchsorted(ends, place, side="right")] for place in ((ends[-1] - 1) // 2, ends[-1] // 2)]
    return f"min {ordered[0] / unit:.4g}, median {sum(middle) / 2 / unit:.4g}, max {ordered[-1] / unit:.4g}"


def _skipped(dataset: RecordDataset) -> str:
    skipped = dataset.metadata.get("skipped")
    return "" if skipped is None else f"; prepare skipped {skipped} files"


def _histogram(dataset: RecordDataset, labels: Counter) -> list[str]:
    """One bar per class, or a summary where there are many."""
    everything = sorted({*range(len(dataset.classes or [])), *labels})
    if not everything:
        return []
    counts = [labels[label] for label in everything]
    lines = [f"  per class  {_spread_of(Counter(counts))} images, {counts.count(0)} classes are empty"]
    if len(everything) > BARS:
        ranked = sorted(everything, key=lambda label: (-labels[label], label))
        for word, some in (("most", ranked[:5]), ("fewest", ranked[-5:])):
            lines.append(f"  {word:10s} {', '.join(f'{dataset.class_name(i)} {labels[i]}' for i in some)}")
        return lines
    names = [dataset.class_name(label) for label in everything]
    width = min(30, max(map(len, names)))
    full, empty = _bar_characters()
    for name, count in zip(names, counts, strict=True):
        bar = round(40 * count / max(1, *counts))
        lines.append(f"  {name[:width]:{width}s} {full * bar}{empty * (40 - bar)} {count}")
    return lines


def _bar_characters() -> tuple[str, str]:
    try:
        "█·".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return "#", "."
    return "█", "·"
