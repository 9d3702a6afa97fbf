"""What a token cache decodes to: a picture of originals beside decoded images, PSNR, and codebook usage.

Shapes: B images, S side, K tokens.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, PAIR_GAP, GAP, MARGIN, CAPTION, TITLE = 128, 2, 18, 24, 24, 40
COLUMNS = 4  # of pairs


@dataclass
class CodebookUsage:
    used: int  # codes that occur
    size: int
    perplexity: float  # exp of the entropy of the codes' frequencies: size if all are equally frequent


def psnr(originals: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """(B,S,S,3) uint8 twice -> (B,) in dB, with the peak at 255 and the mean over pixels and channels."""
    error = (originals.astype(np.float64) - decoded.astype(np.float64)) ** 2
    return 10 * np.log10(255**2 / np.maximum(error.mean(axis=(1, 2, 3)), 1e-10))


def codebook_usage(ids: np.ndarray, size: int) -> CodebookUsage:
    """Over all of ids (N,V,K), which may be a memory map: it is read in parts."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(ids), 4096):
        counts += np.bincount(ids[start : start + 4096].ravel(), minlength=size)
    frequencies = counts[counts > 0] / counts.sum()
    perplexity = float(np.exp(-(frequencies * np.log(frequencies)).sum()))
    return CodebookUsage(int((counts > 0).sum()), size, perplexity)


def draw_pairs(originals: np.ndarray, decoded: np.ndarray, captions: list[tuple[str, str]], title: str) -> Image.Image:
    """Pairs original | decoded in a grid, each with a caption on the left and one on the right below it.

    Small images are enlarged without smoothing, so that what is seen is what was decoded.
    """
    pair = 2 * CELL + PAIR_GAP
    rows = -(-len(originals) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * (pair + GAP) - GAP
    sheet = Image.new("RGB", (width, MARGIN + TITLE + rows * (CELL + CAPTION + GAP) - GAP + MARGIN), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), _fit(draw, title, width - 2 * MARGIN, 18), "#1f2328", ImageFont.load_default(18))
    for number, (left_caption, right_caption) in enumerate(captions):
        left = MARGIN + number % COLUMNS * (pair + GAP)
        top = MARGIN + TITLE + number // COLUMNS * (CELL + CAPTION + GAP)
        sheet.paste(_cell(originals[number]), (left, top))
        sheet.paste(_cell(decoded[number]), (left + CELL + PAIR_GAP, top))
        middle, small = top + CELL + CAPTION // 2, ImageFont.load_default(13)
        draw.text((left + pair, middle), right_caption, "#6e7781", small, anchor="rm")
        room = pair - 8 - draw.textlength(right_caption, small)
        draw.text((left, middle), _fit(draw, left_caption, room, 13), "#1f2328", small, anchor="lm")
    return sheet


def _cell(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    return image.resize((CELL, CELL), Image.NEAREST if image.width < CELL else Image.LANCZOS)


def _fit(draw: ImageDraw.ImageDraw, text: str, width: float, size: int) -> str:
    font = ImageFont.load_default(size)
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"
