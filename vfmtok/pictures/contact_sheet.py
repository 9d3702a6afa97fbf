"""Contact sheets: a picture of many small pictures with their class names, or of originals beside decoded images.

Shapes: B images, S side.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from vfmtok.data.order import evenly_spaced
from vfmtok.pictures.style import (
    CAPTION,
    EMPTY,
    FAINT,
    MARGIN,
    PAPER,
    TITLE,
    at_side,
    enlarged_side,
    new_sheet,
    write_text,
)

CELL = 96  # pixels per image side
GAP = 6
NAME_WIDTH = 200  # column of class names, where every class has a row
COLUMNS = 8
ROW_CLASSES = 16  # up to this many classes get a row of images each; more get one image each
GRID_CLASSES = 64

PAIR_CELL, PAIR_GAP, PAIR_SPACE, PAIR_COLUMNS = 128, 2, 18, 4
SHOWN_SIDE = 256  # least side of an image in a picture of one pair


@dataclass
class Section:
    """One dataset on the sheet."""

    title: str
    rows: list[tuple[str, int, Iterable[Image.Image]]]  # class name, its image count, examples


def draw_sheet(sections: list[Section]) -> Image.Image:
    """The sections below each other. Images keep their proportions; transparency is shown on grey."""
    parts = [_draw_section(section) for section in sections]
    sheet = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _draw_section(section: Section) -> Image.Image:
    if len(section.rows) <= ROW_CLASSES:
        return _draw_rows(section)
    shown = min(GRID_CLASSES, len(section.rows))
    chosen = [section.rows[i] for i in evenly_spaced(shown, len(section.rows))]
    return _draw_grid(section.title + (f" ({shown} shown)" if shown < len(section.rows) else ""), chosen)


def _draw_rows(section: Section) -> Image.Image:
    """A row of images per class, its name and count on the left."""
    width = NAME_WIDTH + COLUMNS * (CELL + GAP) - GAP
    sheet, draw, top = new_sheet(width, len(section.rows) * (CELL + GAP), section.title)
    for name, count, images in section.rows:
        middle = top + CELL // 2
        write_text(draw, (MARGIN, middle - 9), name, 15, NAME_WIDTH - GAP)
        write_text(draw, (MARGIN, middle + 11), f"{count} images", 12, NAME_WIDTH - GAP, FAINT)
        for column, image in enumerate(islice(images, COLUMNS)):
            _paste(sheet, image, MARGIN + NAME_WIDTH + column * (CELL + GAP), top)
        top += CELL + GAP
    return sheet


def _draw_grid(title: str, rows: list[tuple[str, int, Iterable[Image.Image]]]) -> Image.Image:
    """One image per class with its name below."""
    wide = CELL + 24  # leaves names more room
    lines = -(-len(rows) // COLUMNS)
    width = COLUMNS * (wide + GAP) - GAP
    sheet, draw, top = new_sheet(width, lines * (CELL + CAPTION + GAP), title)
    for number, (name, _, images) in enumerate(rows):
        left = MARGIN + number % COLUMNS * (wide + GAP)
        upper = top + number // COLUMNS * (CELL + CAPTION + GAP)
        for image in islice(images, 1):
            _paste(sheet, image, left + (wide - CELL) // 2, upper)
        write_text(draw, (left + wide // 2, upper + CELL + CAPTION // 2), name, 12, wide, anchor="mm")
    return sheet


def draw_pairs(originals: np.ndarray, decoded: np.ndarray, captions: list[tuple[str, str]], title: str) -> Image.Image:
    """Pairs original | decoded, each (B,S,S,3) uint8, in a grid, with a caption on the left and one on the right
    below each pair.

    Small images are enlarged without smoothing, so that what is seen is what was decoded.
    """
    pair, line = 2 * PAIR_CELL + PAIR_GAP, PAIR_CELL + CAPTION + PAIR_SPACE
    width = PAIR_COLUMNS * (pair + PAIR_SPACE) - PAIR_SPACE
    sheet, draw, top = new_sheet(width, -(-len(originals) // PAIR_COLUMNS) * line - PAIR_SPACE, title)
    for number, (left_caption, right_caption) in enumerate(captions):
        left = MARGIN + number % PAIR_COLUMNS * (pair + PAIR_SPACE)
        upper = top + number // PAIR_COLUMNS * line
        sheet.paste(at_side(originals[number], PAIR_CELL), (left, upper))
        sheet.paste(at_side(decoded[number], PAIR_CELL), (left + PAIR_CELL + PAIR_GAP, upper))
        middle = upper + PAIR_CELL + CAPTION // 2
        taken = write_text(draw, (left + pair, middle), right_caption, 13, pair // 2, FAINT, anchor="rm")
        write_text(draw, (left, middle), left_caption, 13, pair - 8 - taken)
    return sheet


def draw_pair(original: np.ndarray, decoded: np.ndarray, name: str, value: str) -> Image.Image:
    """One pair, both (S,S,3) uint8, at their own size or, where that is small, at the next whole multiple of it."""
    side = enlarged_side(len(original), SHOWN_SIDE)
    sheet, draw, top = new_sheet(2 * side + GAP, side + CAPTION, "")
    title = MARGIN + TITLE // 2 - 7
    taken = write_text(draw, (sheet.width - MARGIN, title), value, 16, sheet.width / 2, FAINT, anchor="rm")
    write_text(draw, (MARGIN, title), name, 18, sheet.width - 2 * MARGIN - taken - 12)
    for left, pixels, what in ((MARGIN, original, "input"), (MARGIN + side + GAP, decoded, "reconstruction")):
        sheet.paste(at_side(pixels, side), (left, top))
        write_text(draw, (left, top + side + CAPTION // 2), what, 13, side, FAINT)
    return sheet


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int) -> None:
    image = image.convert("RGBA")
    scale = CELL / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    cell = Image.new("RGBA", (CELL, CELL), EMPTY)
    cell.alpha_composite(image, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    sheet.paste(cell.convert("RGB"), (left, top))
