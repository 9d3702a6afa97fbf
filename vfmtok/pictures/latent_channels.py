"""What the channels of latents hold: an image, what its latents decode to, and every channel as a small grey picture.

Shapes: n images, S side; latents of C channels on a map (h,w).
"""

import numpy as np
from PIL import Image

from vfmtok.data.order import evenly_spaced
from vfmtok.pictures.style import CAPTION, FAINT, MARGIN, at_side, new_sheet, write_text

LATENTS_SHEET = "latents.png"  # beside the contact sheet of a cache
CELL, GAP = 64, 4  # pixels: with all channels the sheet is about as wide as a page
ROWS, MOST_CHANNELS = 8, 16
SPREAD = 2.5  # standard deviations from the mean to black and to white


def draw_channels(originals: np.ndarray, decoded: np.ndarray, latents: np.ndarray, names: list[str]) -> Image.Image:
    """A row for each of ``ROWS`` images, evenly spaced: original, decoded, then channels.

    Args:
        originals, decoded: (n,S,S,3) uint8.
        latents: (n,C,h,w), the first ``MOST_CHANNELS`` channels of which are drawn, normalised by all n.
    """
    channels = min(latents.shape[1], MOST_CHANNELS)
    mean, std = (measure(latents, axis=(0, 2, 3), keepdims=True) for measure in (np.mean, np.std))  # (1,C,1,1)
    grey = 255 * (0.5 + (latents - mean) / np.maximum(std, 1e-12) / (2 * SPREAD))  # (n,C,h,w)
    grey = np.clip(np.round(grey), 0, 255).astype(np.uint8)
    headings = ["image", "decoded", *map(str, range(channels))]
    which = "" if channels == latents.shape[1] else f", {channels} of {latents.shape[1]}"
    title = f"Latents by channel{which}: grey is the mean, black and white {SPREAD:g} standard deviations from it"
    line, chosen = CELL + CAPTION, evenly_spaced(ROWS, len(names)).tolist()
    sheet, draw, top = new_sheet(len(headings) * (CELL + GAP) - GAP, CAPTION + len(chosen) * line, title)
    for column, heading in enumerate(headings):
        write_text(draw, (MARGIN + column * (CELL + GAP), top + CAPTION // 2), heading, 13, CELL, FAINT)
    for row, number in enumerate(chosen):
        upper = top + CAPTION + row * line
        maps = np.repeat(grey[number, :channels, :, :, None], 3, axis=-1)  # (c,h,w,3)
        for column, pixels in enumerate((originals[number], decoded[number], *maps)):
            sheet.paste(at_side(pixels, CELL), (MARGIN + column * (CELL + GAP), upper))
        write_text(draw, (MARGIN, upper + CELL + CAPTION // 2), names[number], 13, 2 * CELL)
    return sheet
