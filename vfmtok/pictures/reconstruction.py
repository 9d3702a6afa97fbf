"""Reconstructions beside their originals, with their errors.

Shapes: n images, S side.
"""

import numpy as np
from PIL import Image, ImageDraw

from vfmtok.pictures.style import CAPTION, FAINT, FRAME, GAP, MARGIN, at_side, new_sheet, write_text

Group = tuple[np.ndarray, np.ndarray, list[str]]  # originals (n,S,S,3), reconstructions (n,S,S,3), captions

CELL, SPACE, NAME = 144, 16, 34  # side of an image, between triples, height of a group's name
ERROR_END = 64  # of 255: a mean absolute error drawn white


def draw_reconstructions(groups: dict[str, Group], title: str) -> Image.Image:
    """A row of (original, reconstruction, error) for every group, and the errors' scale below."""
    columns = max(len(captions) for _, _, captions in groups.values())
    triple, row = 3 * CELL + 2 * GAP, NAME + CELL + CAPTION
    width = columns * (triple + SPACE) - SPACE
    sheet, draw, top = new_sheet(width, len(groups) * row + 40, title)
    for number, (name, (originals, decoded, captions)) in enumerate(groups.items()):
        upper = top + number * row
        write_text(draw, (MARGIN, upper + NAME // 2), name, 16, width)
        errors = colour_of_error(originals, decoded)
        for place, caption in enumerate(captions):
            left = MARGIN + place * (triple + SPACE)
            for column, pixels in enumerate((originals[place], decoded[place], errors[place])):
                paste_framed(sheet, at_side(pixels, CELL), (left + column * (CELL + GAP), upper + NAME))
            write_text(draw, (left, upper + NAME + CELL + CAPTION // 2), caption, 13, triple, FAINT)
    _draw_scale(sheet, draw, sheet.height - MARGIN - 16)
    return sheet


def colour_of_error(originals: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """two batches (n,S,S,3) uint8 -> (n,S,S,3) uint8: mean absolute error over channels, black, red, yellow, white."""
    error = np.abs(originals.astype(np.float32) - decoded.astype(np.float32)).mean(axis=-1)  # (n,S,S) in [0,255]
    return _heat(error / ERROR_END)


def _heat(share: np.ndarray) -> np.ndarray:
    """(...) in [0,1] -> (...,3) uint8."""
    return (np.clip(3 * share[..., None] - np.arange(3), 0, 1) * 255).astype(np.uint8)


def _draw_scale(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int) -> None:
    ramp = np.broadcast_to(_heat(np.linspace(0, 1, 200, dtype=np.float32)), (12, 200, 3))
    write_text(draw, (MARGIN, top + 6), "error 0", 13, 80, FAINT)
    sheet.paste(Image.fromarray(np.ascontiguousarray(ramp)), (MARGIN + 56, top))
    text = f"{ERROR_END} of 255 and more (mean over channels)"
    write_text(draw, (MARGIN + 264, top + 6), text, 13, sheet.width - 2 * MARGIN - 264, FAINT)


def paste_framed(sheet: Image.Image, image: Image.Image, place: tuple[int, int]) -> None:
    """With a frame: many images are white at their edges, as the sheet is."""
    sheet.paste(image, place)
    x, y = place
    ImageDraw.Draw(sheet).rectangle((x - 1, y - 1, x + image.width, y + image.height), outline=FRAME)
