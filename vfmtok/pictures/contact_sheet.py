"""Contact sheets: a picture of many small pictures with their class names, or of originals beside decoded images.

Shapes: B images, S side.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 96  # pixels per image side
GAP = 6
MARGIN = 20
NAME_WIDTH = 200  # column of class names, where every class has a row
COLUMNS = 8
ROW_CLASSES = 16  # up to this many classes get a row of images each; more get one image each
GRID_CLASSES = 64

PAIR_CELL, PAIR_GAP, PAIR_SPACE, PAIR_MARGIN, PAIR_CAPTION, PAIR_TITLE = 128, 2, 18, 24, 24, 40
PAIR_COLUMNS = 4
SHOWN_SIDE = 256  # least side of an image in a picture of one pair

# Fonts for what Pillow's own lacks (nearly all but ASCII), found by name where the system keeps its fonts:
# those of many alphabets, then those of Chinese, Japanese and Korean, on Linux, macOS and Windows.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf", "LiberationSans-Regular.ttf"),
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc"),
    *("DroidSansFallbackFull.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "malgun.ttf", "YuGothM.ttc"),
)

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
        write_text(draw, (MARGIN, middle - 9), name, 15, NAME_WIDTH - GAP)
        write_text(draw, (MARGIN, middle + 11), f"{count} images", 12, NAME_WIDTH - GAP, _FAINT)
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
        write_text(draw, (left + wide // 2, upper + CELL + caption // 2), name, 12, wide, anchor="mm")
    return sheet


def draw_pairs(originals: np.ndarray, decoded: np.ndarray, captions: list[tuple[str, str]], title: str) -> Image.Image:
    """Pairs original | decoded, each (B,S,S,3) uint8, in a grid, with a caption on the left and one on the right
    below each pair.

    Small images are enlarged without smoothing, so that what is seen is what was decoded.
    """
    pair = 2 * PAIR_CELL + PAIR_GAP
    line = PAIR_CELL + PAIR_CAPTION + PAIR_SPACE
    width = 2 * PAIR_MARGIN + PAIR_COLUMNS * (pair + PAIR_SPACE) - PAIR_SPACE
    height = 2 * PAIR_MARGIN + PAIR_TITLE + -(-len(originals) // PAIR_COLUMNS) * line - PAIR_SPACE
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    write_text(draw, (PAIR_MARGIN, PAIR_MARGIN + 9), title, 18, width - 2 * PAIR_MARGIN)
    for number, (left_caption, right_caption) in enumerate(captions):
        left = PAIR_MARGIN + number % PAIR_COLUMNS * (pair + PAIR_SPACE)
        top = PAIR_MARGIN + PAIR_TITLE + number // PAIR_COLUMNS * line
        sheet.paste(_pixels(originals[number]), (left, top))
        sheet.paste(_pixels(decoded[number]), (left + PAIR_CELL + PAIR_GAP, top))
        middle = top + PAIR_CELL + PAIR_CAPTION // 2
        taken = write_text(draw, (left + pair, middle), right_caption, 13, pair // 2, _FAINT, anchor="rm")
        write_text(draw, (left, middle), left_caption, 13, pair - 8 - taken)
    return sheet


def draw_pair(original: np.ndarray, decoded: np.ndarray, name: str, value: str) -> Image.Image:
    """One pair, both (S,S,3) uint8, at their own size or, where that is small, at the next whole multiple of it."""
    side = len(original) * -(-SHOWN_SIDE // len(original))
    width, top = 2 * (side + PAIR_MARGIN) + GAP, PAIR_MARGIN + PAIR_TITLE
    sheet = Image.new("RGB", (width, top + side + PAIR_CAPTION + PAIR_MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    taken = write_text(draw, (width - PAIR_MARGIN, PAIR_MARGIN + 9), value, 16, width / 2, _FAINT, anchor="rm")
    write_text(draw, (PAIR_MARGIN, PAIR_MARGIN + 9), name, 18, width - 2 * PAIR_MARGIN - taken - 12)
    for left, pixels, what in (
        (PAIR_MARGIN, original, "input"),
        (PAIR_MARGIN + side + GAP, decoded, "reconstruction"),
    ):
        sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (left, top))
        write_text(draw, (left, top + side + PAIR_CAPTION // 2 + 2), what, 13, side, _FAINT)
    return sheet


def _pixels(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    return image.resize((PAIR_CELL, PAIR_CELL), Image.NEAREST if image.width < PAIR_CELL else Image.LANCZOS)


def _new_part(title: str, width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """An empty part with its title, and where its images begin."""
    top = MARGIN + 36
    sheet = Image.new("RGB", (width, top + height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    write_text(draw, (MARGIN, MARGIN + 12), title, 19, width - 2 * MARGIN)
    return sheet, draw, top


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int) -> None:
    image = image.convert("RGBA")
    scale = CELL / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    cell = Image.new("RGBA", (CELL, CELL), _CELL)
    cell.alpha_composite(image, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    sheet.paste(cell.convert("RGB"), (left, top))


# --------------------------------------------------------------------------------------
# Text
# --------------------------------------------------------------------------------------


def write_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    width: float,
    ink: str = _INK,
    anchor: str = "lm",
) -> float:
    """Write ``text``, shortened with an ellipsis until it is at most ``width`` pixels wide; returns its width."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\n", " ")
    font = _font_for(text, size)
    if draw.textlength(text, font) > width:
        while text and draw.textlength(text + "…", font) > width:
            text = text[:-1]
        text = text.rstrip() + "…"
    draw.text(place, text, ink, font, anchor=anchor)
    return draw.textlength(text, font)


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The first font that holds every character of ``text``, or the one that holds the most of them.

    Pillow's own comes first, so plain names look the same on every machine.
    """
    best, most = None, -1
    characters = {character for character in text if not character.isspace()}
    for name in (None, *FONTS):
        font = _font(name, size)
        held = sum(_holds(name, character) for character in characters) if font else -1
        if held == len(characters):
            return font
        if held > most:
            best, most = font, held
    return best


@cache
def _font(name: str | None, size: int) -> ImageFont.FreeTypeFont | None:
    """A font of the system, or None if it is not there; Pillow's own for the name None."""
    try:
        return ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _holds(name: str | None, character: str) -> bool:
    """Whether a font has a glyph for a character: it does not look like that of U+FFFF, which is none."""
    font = _font(name, 16)
    mask, missing = font.getmask(character), font.getmask("\uffff")
    return mask.size != missing.size or bytes(mask) != bytes(missing)
