"""Pictures of a tokenizer at work: reconstructions with their errors, and where the region sampler looks.

Shapes: n images, S side, T chosen tokens, H heads, L levels, P points, D width.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from vfmtok.errors import ConfigError
from vfmtok.layers.precision import full_float32
from vfmtok.tokenizers.vfmtok.model import to_pixels

Group = tuple[np.ndarray, np.ndarray, list[str]]  # originals (n,S,S,3), reconstructions (n,S,S,3), captions

CELL, GAP, SPACE, MARGIN, CAPTION, TITLE = 144, 4, 16, 20, 20, 34
ERROR_END = 64  # of 255: a mean absolute error drawn white

VIEW, VIEW_GAP = 288, 12  # side of an image with sampling points
COLOURS = ("#ff3b30", "#34c759", "#0a84ff", "#ffcc00", "#bf5af2", "#64d2ff", "#ff9f0a", "#ffffff")

_INK, _FAINT, _FRAME = "#1f2328", "#6e7781", "#d0d7de"

# --------------------------------------------------------------------------------------
# Reconstructions
# --------------------------------------------------------------------------------------


def draw_reconstructions(groups: dict[str, Group], title: str) -> Image.Image:
    """A row of (original, reconstruction, error) for every group, and the errors' scale below."""
    columns = max(len(captions) for _, _, captions in groups.values())
    triple = 3 * CELL + 2 * GAP
    row = TITLE + CELL + CAPTION
    width = 2 * MARGIN + columns * (triple + SPACE) - SPACE
    sheet = Image.new("RGB", (width, 2 * MARGIN + TITLE + len(groups) * row + 40), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    _text(draw, (MARGIN, MARGIN + 10), title, 18, width - 2 * MARGIN)
    for number, (name, (originals, decoded, captions)) in enumerate(groups.items()):
        top = MARGIN + TITLE + number * row
        _text(draw, (MARGIN, top + TITLE // 2), name, 16, width - 2 * MARGIN)
        errors = colour_of_error(originals, decoded)
        for place, caption in enumerate(captions):
            left = MARGIN + place * (triple + SPACE)
            for column, pixels in enumerate((originals[place], decoded[place], errors[place])):
                _paste(sheet, _sized(pixels, CELL), (left + column * (CELL + GAP), top + TITLE))
            _text(draw, (left, top + TITLE + CELL + CAPTION // 2), caption, 13, triple, _FAINT)
    _draw_scale(sheet, draw, sheet.height - MARGIN - 16)
    return sheet


def colour_of_error(originals: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """uint8 (n,S,S,3) twice -> (n,S,S,3) uint8: mean absolute error over channels, black, red, yellow, white."""
    error = np.abs(originals.astype(np.float32) - decoded.astype(np.float32)).mean(axis=-1)  # (n,S,S) in [0,255]
    return _heat(error / ERROR_END)


def _heat(share: np.ndarray) -> np.ndarray:
    """(...) in [0,1] -> (...,3) uint8."""
    return (np.clip(3 * share[..., None] - np.arange(3), 0, 1) * 255).astype(np.uint8)


def _draw_scale(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int) -> None:
    ramp = np.broadcast_to(_heat(np.linspace(0, 1, 200, dtype=np.float32)), (12, 200, 3))
    _text(draw, (MARGIN, top + 6), "error 0", 13, 80, _FAINT)
    sheet.paste(Image.fromarray(np.ascontiguousarray(ramp)), (MARGIN + 56, top))
    text = f"{ERROR_END} of 255 and more (mean over channels)"
    _text(draw, (MARGIN + 264, top + 6), text, 13, sheet.width - 2 * MARGIN - 264, _FAINT)


# --------------------------------------------------------------------------------------
# Sampling points
# --------------------------------------------------------------------------------------


def parse_tokens(text: str | None) -> tuple[int, ...] | None:
    """ "0,15" -> (0, 15). Raises ConfigError."""
    if text is None:
        return None
    if not all(part.isdecimal() for part in text.split(",")):
        raise ConfigError(f"--tokens: whole numbers with commas between are needed, got '{text}'")
    return tuple(map(int, text.split(",")))


def chosen_tokens(tokenizer: nn.Module, tokens: Sequence[int] | None = None) -> tuple[int, ...] | None:
    """The tokens whose points are drawn: these, by default one of each quarter; None if the sampler has no points.

    Raises:
        ConfigError: there is no such token, or too many are named.
    """
    sampler = tokenizer.sampler
    if sampler.attention != "deformable":
        return None
    count = len(sampler.references)
    tokens = _quarters(math.isqrt(count)) if tokens is None else tuple(tokens)
    if not 0 < len(tokens) <= len(COLOURS) or not all(0 <= token < count for token in tokens):
        raise ConfigError(f"sampling points are drawn for 1 to {len(COLOURS)} of the tokens 0 to {count - 1}")
    return tokens


def draw_sampling_points(
    tokenizer: nn.Module, images: Tensor, tokens: Sequence[int] | None = None
) -> Image.Image | None:
    """Where the region sampler's first, middle and last layer read the images (n,3,S,S) in [-1,1] for some tokens.

    A dot's area is the weight of its sample in its head, a cross the token's reference point, a colour a token.

    Args:
        tokens: at most eight; None takes four, one of each quarter.

    Returns:
        None if the sampler has no points (windowed attention).

    Raises:
        ConfigError: there is no such token, or too many are named.
    """
    sampler, tokens = tokenizer.sampler, chosen_tokens(tokenizer, tokens)
    if tokens is None:
        return None
    depth = len(sampler.layers)
    layers = sorted({0, depth // 2, depth - 1})
    found = sampling_points(tokenizer, images, layers)
    header = 64
    width = max(2 * MARGIN + len(layers) * (VIEW + VIEW_GAP) - VIEW_GAP, 620)
    sheet = Image.new("RGB", (width, header + len(images) * (VIEW + VIEW_GAP) - VIEW_GAP + MARGIN), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    named = ", ".join(map(str, tokens))
    _text(draw, (MARGIN, 18), f"Where tokens {named} look: dots by weight, a cross is home", 16, width - 2 * MARGIN)
    pixels = to_pixels(images, VIEW).cpu().numpy()
    references = sampler.references[list(tokens)].tolist()
    for column, layer in enumerate(layers):
        left = MARGIN + column * (VIEW + VIEW_GAP)
        _text(draw, (left, 44), f"layer {layer + 1} of {depth}", 13, VIEW, _FAINT)
        locations, weights = (tensor[:, list(tokens)].cpu() for tensor in found[layer])  # (n,T,H,L,P,2), (n,T,H,L,P)
        for row, image in enumerate(pixels):
            view = _with_points(image, references, locations[row], weights[row])
            _paste(sheet, view, (left, header + row * (VIEW + VIEW_GAP)))
    return sheet


@torch.no_grad()
def sampling_points(tokenizer: nn.Module, images: Tensor, layers: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """layer -> locations (n,Q,H,L,P,2) as (x,y), in [0,1] inside the image, and weights (n,Q,H,L,P)."""
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def note(layer: int):
        def hook(attention, inputs) -> None:
            queries, references, _, grids = inputs
            found[layer] = attention.sampling_points(queries, references, grids)

        return hook

    handles = [tokenizer.sampler.layers[i].cross_attention.register_forward_pre_hook(note(i)) for i in layers]
    try:
        with full_float32(images.device.type):
            tokenizer.encode(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _quarters(side: int) -> tuple[int, ...]:
    """A token from the middle of each quarter of the grid."""
    near, far = side // 4, side - 1 - side // 4
    return tuple(sorted({row * side + column for row in (near, far) for column in (near, far)}))


def _with_points(image: np.ndarray, references: list[list[float]], locations: Tensor, weights: Tensor) -> Image.Image:
    """locations (T,H,L,P,2), weights (T,H,L,P) over a paled image (VIEW,VIEW,3). Drawn at twice the size: smoother."""
    scale = 2
    side = VIEW * scale
    pale = Image.fromarray((image * 0.65 + 255 * 0.35).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(pale)
    for token, (x, y) in enumerate(references):
        colour = COLOURS[token]
        points, shares = locations[token].flatten(0, 2).tolist(), weights[token].flatten().tolist()
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


# --------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------


def _sized(pixels: np.ndarray, side: int) -> Image.Image:
    """Small images are enlarged unsmoothed, so that what is seen is what was decoded."""
    image = Image.fromarray(pixels)
    return image.resize((side, side), Image.Resampling.NEAREST if image.width < side else Image.Resampling.LANCZOS)


def _paste(sheet: Image.Image, image: Image.Image, place: tuple[int, int]) -> None:
    """Framed: many images are white at their edges, as the sheet is."""
    sheet.paste(image, place)
    x, y = place
    ImageDraw.Draw(sheet).rectangle((x - 1, y - 1, x + image.width, y + image.height), outline=_FRAME)


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, width: float, ink: str = _INK
) -> None:
    """Text around the height of ``place``, in a smaller font if it is too wide."""
    font = ImageFont.load_default(size)
    while size > 9 and draw.textlength(text, font) > width:
        size -= 1
        font = ImageFont.load_default(size)
    draw.text(place, text, ink, font, anchor="lm")
