"""Images in rows, one row a class; and in columns, one column a way to make them.

Shapes: S image side.
"""

import numpy as np
from PIL import Image

from vfmtok.pictures.style import CAPTION, FAINT, GAP, MARGIN, at_side, enlarged_side, new_sheet, write_text

CELL = 128  # least side of an image in the picture; smaller ones are enlarged unsmoothed
LEAST_WIDTH = 380  # leaves the title its room


def draw_rows(pixels: np.ndarray, names: list[str], title: str) -> Image.Image:
    """pixels (classes,n,S,S,3) uint8 -> a row of images per class, under a title, the name above each row."""
    rows, columns, side = pixels.shape[:3]
    cell = enlarged_side(side, CELL)
    width = max(columns * (cell + GAP) - GAP, LEAST_WIDTH)
    sheet, draw, top = new_sheet(width, rows * (cell + CAPTION), title)
    for row, name in enumerate(names):
        upper = top + row * (cell + CAPTION)
        write_text(draw, (MARGIN, upper + CAPTION // 2), name, 13, width, FAINT)
        for column in range(columns):
            sheet.paste(at_side(pixels[row, column], cell), (MARGIN + column * (cell + GAP), upper + CAPTION))
    return sheet


def draw_columns(columns: dict[str, np.ndarray], title: str) -> Image.Image:
    """Columns of images (n,S,S,3) uint8 side by side under their names; small images are enlarged unsmoothed."""
    count, side = next(iter(columns.values())).shape[:2]
    cell = enlarged_side(side, CELL)
    width = max(len(columns) * (cell + GAP) - GAP, LEAST_WIDTH)
    sheet, draw, top = new_sheet(width, CAPTION + count * (cell + GAP) - GAP, title)
    for number, (name, images) in enumerate(columns.items()):
        left = MARGIN + number * (cell + GAP)
        write_text(draw, (left, top + CAPTION // 2), name, 13, cell, FAINT)
        for row, pixels in enumerate(images):
            sheet.paste(at_side(pixels, cell), (left, top + CAPTION + row * (cell + GAP)))
    return sheet
