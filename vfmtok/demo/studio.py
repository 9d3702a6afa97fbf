"""What the demo's page does, as plain functions: sample, tokenize, choose tokens, mix.

Shapes: n images, K tokens of an image, h, w the grid on which a part of the code lies, S image side, V codes, E code
dimensions.
"""

import io
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vfmtok.code import Ids, Segment
from vfmtok.config import config_from_dict
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.errors import ConfigError, DataError
from vfmtok.evaluation import completions
from vfmtok.evaluation.reconstruction import round_trip
from vfmtok.evaluation.sampling_points import picture_of_points
from vfmtok.generators.contract import Generator
from vfmtok.generators.drawing import generate
from vfmtok.layers.precision import full_float32
from vfmtok.pictures.sampling_points import COLOURS
from vfmtok.pictures.style import FRAME, INK, enlarged_side
from vfmtok.sources.listing import SAMPLE
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.tokenizers.editing import grid_of, region

VIEW = 512  # side of the pictures of a grid; images smaller than a quarter of it are enlarged unsmoothed
MAX_CHOSEN = len(COLOURS)  # tokens whose sampling points are drawn
PATTERNS = {  # of two images -> the second's region
    "left and right": "right",
    "top and bottom": "bottom",
    "centre": "centre",
    "checkerboard": "checkerboard",
    "scattered": "scattered",
}


@dataclass(frozen=True)
class Studio:
    """The models of a session. ``generator`` None: images can be tokenized and mixed, not sampled."""

    tokenizer: Tokenizer
    generator: Generator | None
    classes: list[str] | None  # by label, where the generator's run knows them

    @property
    def on_grid(self) -> tuple[Segment, slice] | None:
        """The segment of ids that lies on a grid in the image, and where it is in the row of ids."""
        code = self.tokenizer.code
        segments = zip(code.segments, code.slices(), strict=True) if isinstance(code, Ids) else ()
        return next(((segment, place) for segment, place in segments if segment.grid is not None), None)

    @property
    def grid(self) -> tuple[int, int] | None:
        """(h,w) on which ids or latents lie in the image; None: they have no place in it."""
        code = self.tokenizer.code
        if not isinstance(code, Ids):
            return tuple(code.shape[1:]) if len(code.shape) == 3 else None
        return self.on_grid[0].grid if self.on_grid is not None else None

    @property
    def pieces(self) -> str:
        """What the page calls the parts of a code."""
        return "tokens" if isinstance(self.tokenizer.code, Ids) else "latents"

    @property
    def device(self) -> torch.device:
        return self.tokenizer.device

    @property
    def has_holistic(self) -> bool:
        """Whether there are tokens without a place in the image beside those on a grid."""
        return self.on_grid is not None and len(self.tokenizer.code.segments) > 1

    def class_names(self) -> list[str]:
        count = self.generator.num_classes if self.generator is not None else 0
        return self.classes or [f"class {label}" for label in range(count)]


@dataclass(frozen=True)
class Tokenized:
    """An image and its code, as the page keeps them."""

    crop: np.ndarray  # (S,S,3) uint8
    decoded: np.ndarray  # (S,S,3) uint8
    code: np.ndarray  # ids (K,) int64 or latents (C,h,w)
    psnr: float  # dB, of the two


# --------------------------------------------------------------------------------------
# Class -> images
# --------------------------------------------------------------------------------------


def sample(studio: Studio, label: int, count: int, *, seed: int = 0, **settings: Any) -> tuple[list[Image.Image], str]:
    """``count`` images of a class, large enough to look at, and a line about them.

    Args:
        settings: of ``generator.sampling``.

    Raises:
        VFMTokError: there is no such setting, or it is impossible.
    """
    start = time.perf_counter()
    sampling = config_from_dict(settings, studio.generator.sampling, "settings")
    labels = torch.full((int(count),), int(label))
    pixels = decode(studio, generate(studio.generator, labels, seed=int(seed), **asdict(sampling)))
    seconds = time.perf_counter() - start
    name = studio.class_names()[int(label)]
    about = f"{len(pixels)} x {name}, {sampling.guidance}, seed {int(seed)}: {seconds:.1f} s on {studio.device.type}"
    return [enlarged(image) for image in pixels], about


def decode(studio: Studio, code: Tensor | np.ndarray) -> np.ndarray:
    """ids (n,K) or latents (n,C,h,w) -> (n,S,S,3) uint8, in full float32."""
    with full_float32(studio.device.type):
        code = torch.as_tensor(code).to(studio.device)
        return studio.tokenizer.decode_to_uint8(code, studio.tokenizer.config.image_size).cpu().numpy()


# --------------------------------------------------------------------------------------
# Image -> tokens -> image
# --------------------------------------------------------------------------------------


def tokenize(studio: Studio, path: str | Path) -> Tokenized:
    """An image file of any kind, cut as the evaluation does. Raises DataError if it can't be read."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {Path(path).name}: {error.strerror}") from None  # the page tells no path
    size = studio.tokenizer.config.image_size
    crop = EvaluationCrop(size)(content)  # (3,S,S)
    found = round_trip(studio.tokenizer, crop[None].to(studio.device), size)
    pixels = [side[0].cpu().numpy() for side in (found.originals, found.decoded)]  # 2 x (S,S,3)
    return Tokenized(*pixels, found.code[0].cpu().numpy(), found.psnr().item())


def draw_points(studio: Studio, image: Tokenized, tokens: Sequence[int]) -> Image.Image | None:
    """Where these tokens look; None where tokens have no sampling points. Raises ConfigError."""
    pixels = torch.from_numpy(image.crop).permute(2, 0, 1)[None].to(studio.device)  # (1,3,S,S)
    return picture_of_points(studio.tokenizer, to_unit_range(pixels), tuple(tokens))


def draw_ids(studio: Studio, image: Tokenized, chosen: Sequence[int] = ()) -> Image.Image | None:
    """The ids on their grid, and below it those of tokens without a place in the image; None without a grid. Codes near
    each other have like colours where the tokenizer says which are; chosen tokens have frames in the colours of their
    sampling points."""
    if studio.on_grid is None:
        return None
    segment, place = studio.on_grid
    (rows, columns), cell = segment.grid, _cell(studio.grid)
    code, gap = studio.tokenizer.code, cell // 2
    others = [pair for pair in zip(code.segments, code.slices(), strict=True) if pair[1] != place]
    below = sum(gap + -(-other.count // columns) * cell for other, _ in others)
    picture = Image.new("RGB", (columns * cell, rows * cell + below), "#ffffff")
    draw = ImageDraw.Draw(picture)
    top = 0
    for part, where in [(segment, place), *others]:
        _draw_cells(studio, draw, part, image.code[where], columns, cell, top)
        top += -(-part.count // columns) * cell + gap
    thick = max(2, cell // 12)
    for token, colour in zip(chosen, COLOURS, strict=False):
        x, y = token % columns * cell, token // columns * cell
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline="#000000", width=thick + 2)
        draw.rectangle((x + 1, y + 1, x + cell - 2, y + cell - 2), outline=colour, width=thick)
    return picture


def _draw_cells(
    studio: Studio, draw: ImageDraw.ImageDraw, segment: Segment, ids: np.ndarray, columns: int, cell: int, top: int
) -> None:
    """The ids (n,) of a segment, so many to a line, from ``top`` on."""
    colours = _code_colours(_code_vectors(studio, segment))[ids]  # (n,3)
    font = ImageFont.load_default(max(8, min(16, cell // 4)))
    for token, (code, colour) in enumerate(zip(ids.tolist(), colours.tolist(), strict=True)):
        x, y = token % columns * cell, top + token // columns * cell
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=tuple(colour), outline="#ffffff")
        ink = INK if sum(colour) > 360 else "#ffffff"
        draw.text((x + cell // 2, y + cell // 2), str(code), ink, font, anchor="mm")


def token_at(studio: Studio, x: float, y: float) -> int:
    """The token of the cell that a click on a picture of the grid (``draw_ids``, ``draw_choice``) meets."""
    cell, (rows, columns) = _cell(studio.grid), studio.grid
    column, row = (max(0, min(last, int(place) // cell)) for place, last in ((x, columns - 1), (y, rows - 1)))
    return row * columns + column


def _cell(grid: tuple[int, int]) -> int:
    """Pixels per side of a cell in the pictures of a grid."""
    return max(1, VIEW // max(grid))


def toggle(tokens: Sequence[int], token: int) -> list[int]:
    """With ``token`` where it was not there, without it where it was; the oldest makes room for a ninth."""
    if token in tokens:
        return [other for other in tokens if other != token]
    return [*tokens, token][-MAX_CHOSEN:]


def parse_tokens(studio: Studio, text: str) -> list[int]:
    """ "18, 21" -> [18, 21]. Raises ConfigError for what is no token."""
    words, last = text.replace(",", " ").split(), studio.on_grid[0].count - 1
    if not all(word.isdecimal() and int(word) <= last for word in words) or not 0 < len(words) <= MAX_CHOSEN:
        raise ConfigError(f"name 1 to {MAX_CHOSEN} tokens, each from 0 to {last}, got '{text}'")
    return list(dict.fromkeys(map(int, words)))


def _code_vectors(studio: Studio, segment: Segment) -> Tensor:
    """(V,E): those behind the ids where the tokenizer tells them, else the ids themselves in a row."""
    vectors = getattr(studio.tokenizer, "code_vectors", None)
    if vectors is None:
        return torch.linspace(0, 1, segment.size)[:, None].expand(-1, 2) ** torch.tensor([1.0, 2.0])
    return vectors(studio.tokenizer.code.segments.index(segment))


def _code_colours(codes: Tensor) -> np.ndarray:
    """Codes (V,E) -> (V,3) uint8: the three directions in which they differ most, by rank, in pale colours."""
    codes = torch.nn.functional.normalize(codes.detach().cpu().double(), dim=-1)  # (V,E)
    codes = codes - codes.mean(0)
    _, _, directions = torch.linalg.svd(codes, full_matrices=False)  # (E,E)
    ranks = (codes @ directions[:3].T).argsort(0).argsort(0)  # (V,up to 3)
    ranks = torch.nn.functional.pad(ranks, (0, 3 - ranks.shape[1]))
    return (90 + ranks * 160 / max(1, len(codes) - 1)).to(torch.uint8).numpy()


# --------------------------------------------------------------------------------------
# Tokens of two images
# --------------------------------------------------------------------------------------


def pattern(name: str, grid: tuple[int, int], share: float) -> np.ndarray:
    """(h,w) bool, True where the second image's tokens go: about ``share`` of all.

    Raises ConfigError for a name that is not in ``PATTERNS``.
    """
    if name not in PATTERNS:
        raise ConfigError(f"no pattern '{name}', only: {', '.join(PATTERNS)}")
    return region(PATTERNS[name], grid, share)


def mix(studio: Studio, first: Tokenized, second: Tokenized, mask: np.ndarray, style: str = "first") -> np.ndarray:
    """(S,S,3) uint8: decoded from the second image's code where mask (h,w) is True, and the first's elsewhere. Tokens
    without a place in the image are those of ``style``, "first" or "second"."""
    code = (second if style == "second" else first).code.copy()
    if studio.on_grid is not None:
        place = studio.on_grid[1]
        code[place] = np.where(mask.ravel(), second.code[place], first.code[place])
    else:
        code = np.where(mask, second.code, first.code)  # (C,h,w)
    return decode(studio, code[None])[0]


def draw_choice(studio: Studio, first: Tokenized, second: Tokenized, mask: np.ndarray) -> Image.Image:
    """Which region is whose: both images cut along the grid, the second's cells framed in blue, the first's in grey."""
    cell, (rows, columns) = _cell(studio.grid), studio.grid
    size = (columns * cell, rows * cell)
    pictures = [Image.fromarray(image.crop).resize(size, Image.Resampling.BICUBIC) for image in (first, second)]
    stencil = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    picture = Image.composite(pictures[1], pictures[0], stencil)
    draw = ImageDraw.Draw(picture)
    for whose, colour, width in ((False, FRAME, 1), (True, "#0a84ff", 2)):
        for row, column in np.argwhere(mask == whose).tolist():
            x, y = column * cell, row * cell
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline=colour, width=width)
    return picture


# --------------------------------------------------------------------------------------
# A part of an image, and the rest from the generator
# --------------------------------------------------------------------------------------


def complete(
    studio: Studio, image: Tokenized, label: int | None, part: str, share: float, count: int, *, seed: int = 0,
    **settings: Any,
) -> tuple[list[Image.Image], str]:  # fmt: skip
    """What is given of the image, then ``count`` completions, and a line about them. ``label`` None is no class.

    Raises VFMTokError: the generator can't draw this part last, or a setting is impossible.
    """
    start = time.perf_counter()
    sampling = config_from_dict(settings, studio.generator.sampling, "settings")
    redrawn = torch.from_numpy(region(part, grid_of(studio.tokenizer.code), float(share)))  # (h,w)
    pixels = torch.from_numpy(image.crop).permute(2, 0, 1)[None].to(studio.device)  # (1,3,S,S)
    label = studio.generator.null_class if label is None else int(label)
    models, images = (studio.tokenizer, studio.generator), to_unit_range(pixels)
    found = completions.complete(*models, images, redrawn, label, int(count), seed=int(seed), **asdict(sampling))
    shown = [found.given[0].cpu().numpy(), *found.drawn[0].cpu().numpy()]
    seconds = time.perf_counter() - start
    about = f"left: what is given; {int(count)} completions, {sampling.guidance}, seed {int(seed)}: {seconds:.1f} s"
    return [enlarged(picture) for picture in shown], about


# --------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------


def enlarged(pixels: np.ndarray) -> Image.Image:
    """(S,S,3) uint8; a small image is enlarged by a whole factor and unsmoothed, so that what is seen is its pixels."""
    side = enlarged_side(len(pixels), VIEW // 2)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def write_examples(folder: Path, count: int = 4) -> list[str]:
    """Images of the sample set that comes with the package, as files, from evenly spaced places in it."""
    with zipfile.ZipFile(SAMPLE) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("val/") and name.endswith(".png"))
        chosen = [names[(2 * number + 1) * len(names) // (2 * count)] for number in range(count)]
        for number, name in enumerate(chosen):
            image = Image.open(io.BytesIO(archive.read(name))).convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            Image.alpha_composite(white, image).convert("RGB").save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(count)]
