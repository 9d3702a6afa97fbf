"""Images in rows, one row a class; and in columns, one column a way to make them.

Shapes: S image side.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vfmtok.pictures.contact_sheet import write_text

CELL = 128  # least side of an image in the picture; smaller ones are enlarged unsmoothed


def draw_rows(pixels: np.ndarray, names: list[str], title: str) -> Image.Image:
    """pixels (classes,n,S,S,3) uint8 -> a row of images per class, under a title, the name above each row."""
    margin, gap, caption, header = 16, 4, 22, 36
    rows, columns, side = pixels.shape[:3]
    cell = side * max(1, -(-CELL // side))
    width = max(2 * margin + columns * (cell + gap) - gap, 420)
    sheet = Image.new("RGB", (width, header + rows * (cell + caption) + margin), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    write_text(draw, (margin, 18), title, 15, width - 2 * margin)
    for row, name in enumerate(names):
        top = header + row * (cell + caption)
        write_text(draw, (margin, top + 10), name, 13, width - 2 * margin, "#6e7781")
        for column in range(columns):
            image = Image.fromarray(pixels[row, column]).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(image, (margin + column * (cell + gap), top + caption))
    return sheet


def draw_columns(columns: dict[str, np.ndarray], title: str) -> Image.Image:
    """Columns of images (n,S,S,3) uint8 side by side under their names; small images are enlarged unsmoothed."""
    margin, gap, header = 16, 4, 60
    count, side = next(iter(columns.values())).shape[:2]
    cell = side * max(1, -(-CELL // side))
    width = max(2 * margin + len(columns) * (cell + gap) - gap, 420)
    sheet = Image.new("RGB", (width, header + count * (cell + gap) - gap + margin), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, 10), title, "#1f2328", ImageFont.load_default(15))
    for number, (name, images) in enumerate(columns.items()):
        left = margin + number * (cell + gap)
        draw.text((left, header - 22), name, "#6e7781", ImageFont.load_default(13))
        for row, pixels in enumerate(images):
            image = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(image, (left, header + row * (cell + gap)))
    return sheet
