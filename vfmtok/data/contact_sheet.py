"""Contact sheets: a picture of many small pictures with their class names."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from PIL import Image, ImageDraw, ImageFont

CELL = 96  # pixels per image side
GAP = 6
MARGIN = 20
NAME_WIDTH = 200  # column of class names, where every class has a row
COLUMNS = 8
ROW_CLASSES = 16  # up to this many classes get a row of images each; more get one image each
GRID_CLASSES = 64

_BACKGROUND, _INK, _FAINT, _CELL = "#ffffff", "#1f2328", "#6e7781", "#f0f1f3"


@dataclass
class Section:
    """One dataset on the sheet."""

    title: str
    rows: list[tuple[str, int, Iterable[Image.Image]]]  # class name, its image count, examples


def draw_sheet(sections: list[Section]) -> Image.Image:
    """The sections below each other. Images keep their proportions; transparency is shown on grey."""
    parts = [_draw_section(section) for section in sections]
    sheet = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts) + MARGIN), _BACKGROUND)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _draw_section(section: Section) -> Image.Image:
    if len(section.rows) <= ROW_CLASSES:
        return _draw_rows(section)
    shown = min(GRID_CLASSES, len(section.rows))
    chosen = [section.rows[i * len(section.rows) // shown] for i in range(shown)]
    return _draw_grid(section.title + (f" ({shown} shown)" if shown < len(section.rows) else ""), chosen)


def _draw_rows(section: Section) -> Image.Image:
    """A row of images per class, its name and count on the left."""
    width = 2 * MARGIN + NAME_WIDTH + COLUMNS * (CELL + GAP) - GAP
    sheet, draw, top = _new_part(section.title, width, len(section.rows) * (CELL + GAP))
    for name, count, images in section.rows:
        middle = top + CELL // 2
        draw.text((MARGIN, middle - 9), _fit(draw, name, NAME_WIDTH - GAP, _font(15)), _INK, _font(15), anchor="lm")
        draw.text((MARGIN, middle + 11), f"{count} images", _FAINT, _font(12), anchor="lm")
        for column, image in enumerate(islice(images, COLUMNS)):
            _paste(sheet, image, MARGIN + NAME_WIDTH + column * (CELL + GAP), top)
        top += CELL + GAP
    return sheet


def _draw_grid(title: str, rows: list[tuple[str, int, Iterable[Image.Image]]]) -> Image.Image:
    """One image per class with its name below."""
    caption, wide = 20, CELL + 24  # wider cells leave names more room
    lines = -(-len(rows) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * (wide + GAP) - GAP
    sheet, draw, top = _new_part(title, width, lines * (CELL + caption + GAP))
    for number, (name, _, images) in enumerate(rows):
        left = MARGIN + number % COLUMNS * (wide + GAP)
        upper = top + number // COLUMNS * (CELL + caption + GAP)
        for image in islice(images, 1):
            _paste(sheet, image, left + (wide - CELL) // 2, upper)
        text = _fit(draw, name, wide, _font(12))
        draw.text((left + wide // 2, upper + CELL + caption // 2), text, _INK, _font(12), anchor="mm")
    return sheet


def _new_part(title: str, width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """An empty part with its title, and where its images begin."""
    top = MARGIN + 36
    sheet = Image.new("RGB", (width, top + height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN + 12), _fit(draw, title, width - 2 * MARGIN, _font(19)), _INK, _font(19), anchor="lm")
    return sheet, draw, top


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int) -> None:
    image = image.convert("RGBA")
    scale = CELL / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    cell = Image.new("RGBA", (CELL, CELL), _CELL)
    cell.alpha_composite(image, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    sheet.paste(cell.convert("RGB"), (left, top))


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _fit(draw: ImageDraw.ImageDraw, text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """``text``, shortened with an ellipsis until it is at most ``width`` pixels wide."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\n", " ")
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"
