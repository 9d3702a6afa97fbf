"""What a listing understood, as text: shown before anything is done."""

from collections import Counter
from collections.abc import Iterable

from vfmtok.sources.listing import Listing

MOST_ROWS = 12  # of sources and of what is not used; the rest is summed up


def describe(listing: Listing) -> list[str]:
    """Lines that say where the images come from, their splits and classes, and what is left out and why."""
    rows = []
    for part in listing.parts:
        where = part.container.inside or part.name
        splits = ", ".join(f"{count:,} {split or 'images'}" for split, count in sorted(part.splits.items(), key=str))
        rows.append((where, part.what, splits or "no images"))
    lines = _columns([("source", "taken for", "holds"), *_shortened(rows)])
    counts = ", ".join(f"{len(entries):,} {split}" for split, entries in listing.splits.items())
    lines.append(f"found {len(listing):,} images ({counts}) of {len(listing.classes):,} classes")
    with_images = {split: len({entry.label for entry in entries}) for split, entries in listing.splits.items()}
    lines += [
        f"  {count:,} of the classes have images in {split}"
        for split, count in with_images.items()
        if count < len(listing.classes)
    ]
    lines.append(f"classes by label: {_classes(listing.classes)}")
    ignored = Counter(listing.ignored)
    if ignored:
        kinds = [f"{count:,} {kind}" for kind, count in ignored.most_common(MOST_ROWS)]
        rest = [f"{len(ignored) - MOST_ROWS} other kinds"] if len(ignored) > MOST_ROWS else []
        lines.append(f"not used: {', '.join(kinds + rest)}")
    if listing.left_out:
        lines.append(f"left out {listing.left_out:,} images of the test split (--split test=val makes it validation)")
    return lines + listing.notes


def _classes(names: list[str]) -> str:
    shown = [f"{label} {names[label]}" for label in range(min(3, len(names)))]
    if len(names) > 4:
        shown.append("...")
    if len(names) > 3:
        shown.append(f"{len(names) - 1} {names[-1]}")
    return ", ".join(shown)


def _shortened(rows: list[tuple[str, str, str]]) -> Iterable[tuple[str, str, str]]:
    if len(rows) <= MOST_ROWS:
        return rows
    middle = rows[MOST_ROWS - 3 : -2]
    kinds = Counter(what for _, what, _ in middle)
    words = ", ".join(f"{count} x {what}" for what, count in kinds.most_common(3))
    return [*rows[: MOST_ROWS - 3], (f"... {len(middle)} more", words, "..."), *rows[-2:]]


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
