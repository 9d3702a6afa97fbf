"""Where tokens read the image: their sampling points, drawn over it.

Shapes: n images, T chosen tokens, K tokens, P points.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from vfmtok.data.order import evenly_spaced
from vfmtok.errors import ConfigError
from vfmtok.pictures.reconstruction import paste_framed
from vfmtok.pictures.style import FAINT, MARGIN, new_sheet, write_text

Grid = tuple[int, int] | None  # (h,w) on which tokens lie in the image, row by row
VIEW, GAP = 288, 12  # side of an image
COLOURS = ("#ff3b30", "#34c759", "#0a84ff", "#ffcc00", "#bf5af2", "#64d2ff", "#ff9f0a", "#ffffff")


def parse_tokens(text: str | None) -> tuple[int, ...] | None:
    """ "0,15" -> (0, 15). Raises ConfigError."""
    if text is None:
        return None
    if not all(part.isdecimal() for part in text.split(",")):
        raise ConfigError(f"--tokens: whole numbers with commas between are needed, got '{text}'")
    return tuple(map(int, text.split(",")))


def chosen_tokens(count: int, grid: Grid, tokens: Sequence[int] | None = None) -> tuple[int, ...]:
    """Which of ``count`` tokens have their points drawn: these, by default four, of a grid one of each quarter.

    Raises:
        ConfigError: there is no such token, or too many are named.
    """
    tokens = default_tokens(count, grid) if tokens is None else tuple(tokens)
    if not 0 < len(tokens) <= len(COLOURS) or not all(0 <= token < count for token in tokens):
        raise ConfigError(f"sampling points are drawn for 1 to {len(COLOURS)} of the tokens 0 to {count - 1}")
    return tokens


def default_tokens(count: int, grid: Grid) -> tuple[int, ...]:
    """A token from the middle of each quarter of the grid; four, evenly spaced, where there is no grid."""
    if grid is None:
        return tuple(evenly_spaced(4, count).tolist())
    rows, columns = ((side // 4, side - 1 - side // 4) for side in grid)
    return tuple(sorted({row * grid[1] + column for row in rows for column in columns}))


def draw_sampling_points(pixels: np.ndarray, points: Sequence[Any], tokens: Sequence[int]) -> Image.Image:
    """Where some tokens read the images (n,VIEW,VIEW,3) uint8: a row for every image, a column for every layer.

    A dot's area is the weight of its point, a cross the token's own place, a colour a token.

    Args:
        points: ``SamplingPoints`` of the images, of every layer to be drawn.
        tokens: at most eight, see ``chosen_tokens``.
    """
    tokens, header = list(tokens), 24
    width = max(len(points) * (VIEW + GAP) - GAP, 580)
    named = ", ".join(map(str, tokens))
    title = f"Where tokens {named} look; crosses: their own places"
    sheet, draw, top = new_sheet(width, header + len(pixels) * (VIEW + GAP) - GAP, title)
    for column, layer in enumerate(points):
        left = MARGIN + column * (VIEW + GAP)
        write_text(draw, (left, top + header // 2), layer.layer, 13, VIEW, FAINT)
        references, locations, weights = (
            tensor.cpu() for tensor in (layer.references[tokens], layer.locations[:, tokens], layer.weights[:, tokens])
        )  # (T,2), (n,T,P,2), (n,T,P)
        for row, image in enumerate(pixels):
            view = _with_points(image, references, locations[row], weights[row])
            paste_framed(sheet, view, (left, top + header + row * (VIEW + GAP)))
    return sheet


def _with_points(image: np.ndarray, references: Tensor, locations: Tensor, weights: Tensor) -> Image.Image:
    """locations (T,P,2), weights (T,P) over a paled image (VIEW,VIEW,3). Drawn at twice the size: smoother."""
    scale = 2
    side = VIEW * scale
    pale = Image.fromarray((image * 0.65 + 255 * 0.35).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(pale)
    for token, (x, y) in enumerate(references.tolist()):
        colour = COLOURS[token]
        points, shares = locations[token].tolist(), weights[token].tolist()
        for (px, py), share in sorted(zip(points, shares, strict=True), key=lambda pair: -pair[1]):
            if 0 <= px <= 1 and 0 <= py <= 1:  # what lies outside reads zero
                _dot(draw, px * side, py * side, scale * 9 * math.sqrt(share), colour)
        _cross(draw, x * side, y * side, 7 * scale, colour, scale)
    return pale.resize((VIEW, VIEW), Image.Resampling.LANCZOS)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: str) -> None:
    radius = max(radius, 2)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="#000000")


def _cross(draw: ImageDraw.ImageDraw, x: float, y: float, reach: float, colour: str, scale: int) -> None:
    for ink, width in (("#000000", 5 * scale), (colour, 2 * scale)):
        draw.line((x - reach, y, x + reach, y), ink, width)
        draw.line((x, y - reach, x, y + reach), ink, width)
