"""What all pictures share: colours, how images become large enough to look at, and text in any script."""

from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, FRAME, EMPTY = "#ffffff", "#1f2328", "#6e7781", "#d0d7de", "#f0f1f3"  # EMPTY: behind transparency
MARGIN = 20  # pixels around a picture
TITLE = 38  # height of the line of the title
CAPTION = 22  # height of a line below or above images
GAP = 4  # between images that belong together

# Fonts for what Pillow's own lacks (nearly all but ASCII), found by name where the system keeps its fonts:
# those of many alphabets, then those of Chinese, Japanese and Korean, on Linux, macOS and Windows.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf", "LiberationSans-Regular.ttf"),
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc"),
    *("DroidSansFallbackFull.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "malgun.ttf", "YuGothM.ttc"),
)


def new_sheet(width: int, height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A picture with room for (width, height) pixels below its title; how to draw on it, and where that room begins."""
    top = MARGIN + TITLE
    sheet = Image.new("RGB", (width + 2 * MARGIN, top + height + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    write_text(draw, (MARGIN, MARGIN + TITLE // 2 - 7), title, 17, width)
    return sheet, draw, top


# --------------------------------------------------------------------------------------
# Images
# --------------------------------------------------------------------------------------


def at_side(pixels: np.ndarray, side: int) -> Image.Image:
    """(S,S,3) uint8 at another side. Small ones are enlarged unsmoothed, so that what is seen are their pixels."""
    image = Image.fromarray(pixels)
    return image.resize((side, side), Image.Resampling.NEAREST if image.width < side else Image.Resampling.LANCZOS)


def enlarged_side(side: int, least: int) -> int:
    """``side``, or where that is less than ``least`` its first whole multiple that is not."""
    return side * max(1, -(-least // side))


# --------------------------------------------------------------------------------------
# Text
# --------------------------------------------------------------------------------------


def write_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    width: float,
    ink: str = INK,
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
