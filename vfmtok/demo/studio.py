"""What the demo's page does, as plain functions: sample, tokenize, choose tokens, mix.

Shapes: n images, K tokens of an image, G = sqrt(K) their grid's side, S image side, V codes, E code dimensions.
"""

import io
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.errors import ConfigError, DataError
from vfmtok.evaluation.round_trip import round_trip
from vfmtok.generators.autoregressive import generate
from vfmtok.generators.gpt.model import GPT
from vfmtok.layers.precision import full_float32
from vfmtok.pictures.reconstruction import COLOURS, draw_sampling_points
from vfmtok.sources.listing import SAMPLE
from vfmtok.tokenizers.vfmtok.model import VFMTok

VIEW = 512  # side of the pictures of a grid; images smaller than a quarter of it are enlarged unsmoothed
MAX_CHOSEN = len(COLOURS)  # tokens whose sampling points are drawn
PATTERNS = ("left and right", "top and bottom", "centre", "checkerboard", "scattered")


@dataclass(frozen=True)
class Studio:
    """The models of a session. ``gpt`` None: images can be tokenized and mixed, not sampled."""

    tokenizer: VFMTok
    gpt: GPT | None
    classes: list[str] | None  # by label, where the generator's run knows them

    @property
    def side(self) -> int:
        """G."""
        return round(self.tokenizer.code.num_tokens**0.5)

    @property
    def device(self) -> torch.device:
        return self.tokenizer.device

    def class_names(self) -> list[str]:
        count = self.gpt.config.num_classes if self.gpt is not None else 0
        return self.classes or [f"class {label}" for label in range(count)]


@dataclass(frozen=True)
class Tokenized:
    """An image and its ids, as the page keeps them."""

    crop: np.ndarray  # (S,S,3) uint8
    decoded: np.ndarray  # (S,S,3) uint8
    ids: np.ndarray  # (K,) int64
    psnr: float  # dB, of the two


# --------------------------------------------------------------------------------------
# Class -> images
# --------------------------------------------------------------------------------------


def sample(
    studio: Studio,
    label: int,
    count: int,
    *,
    guidance: float = 2.0,
    top_k: int = 0,
    top_p: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[list[Image.Image], str]:
    """``count`` images of a class, large enough to look at, and a line about them. Raises VFMTokError."""
    start = time.perf_counter()
    labels = torch.full((int(count),), int(label))
    ids = generate(
        studio.gpt, labels, cfg_scale=guidance, top_k=int(top_k), top_p=top_p, temperature=temperature, seed=int(seed)
    )  # (n,K)
    pixels = decode(studio, ids)
    seconds = time.perf_counter() - start
    name = studio.class_names()[int(label)]
    about = f"{len(pixels)} x {name}, guidance {guidance:g}, seed {int(seed)}: {seconds:.1f} s on {studio.device.type}"
    return [enlarged(image) for image in pixels], about


def decode(studio: Studio, ids: Tensor | np.ndarray) -> np.ndarray:
    """ids (n,K) -> (n,S,S,3) uint8, in full float32."""
    with full_float32(studio.device.type):
        ids = torch.as_tensor(ids).to(studio.device)
        return studio.tokenizer.decode_to_uint8(ids, studio.tokenizer.config.image_size).cpu().numpy()


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
    return Tokenized(*pixels, found.ids[0].cpu().numpy(), found.psnr().item())


def draw_points(studio: Studio, image: Tokenized, tokens: Sequence[int]) -> Image.Image | None:
    """Where the region sampler looks for these tokens; None where it has no points. Raises ConfigError."""
    pixels = torch.from_numpy(image.crop).permute(2, 0, 1)[None].to(studio.device)  # (1,3,S,S)
    return draw_sampling_points(studio.tokenizer, to_unit_range(pixels), tuple(tokens))


def draw_ids(studio: Studio, image: Tokenized, chosen: Sequence[int] = ()) -> Image.Image:
    """The ids on their grid. Codes near each other have like colours; chosen tokens have frames in the
    colours of their sampling points."""
    every_id = torch.arange(studio.tokenizer.code.largest_codebook, device=studio.device)  # (V,)
    colours = _code_colours(studio.tokenizer.quantizer.lookup(every_id))[image.ids]  # (K,3)
    side, cell = studio.side, VIEW // studio.side
    picture = Image.new("RGB", (side * cell, side * cell))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(8, min(16, cell // 4)))
    for token, (code, colour) in enumerate(zip(image.ids.tolist(), colours.tolist(), strict=True)):
        x, y = token % side * cell, token // side * cell
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=tuple(colour), outline="#ffffff")
        ink = "#1f2328" if sum(colour) > 360 else "#ffffff"
        draw.text((x + cell // 2, y + cell // 2), str(code), ink, font, anchor="mm")
    thick = max(2, cell // 12)
    for token, colour in zip(chosen, COLOURS, strict=False):
        x, y = token % side * cell, token // side * cell
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline="#000000", width=thick + 2)
        draw.rectangle((x + 1, y + 1, x + cell - 2, y + cell - 2), outline=colour, width=thick)
    return picture


def token_at(studio: Studio, x: float, y: float) -> int:
    """The token of the cell that a click on a picture of the grid (``draw_ids``, ``draw_choice``) meets."""
    cell, last = VIEW // studio.side, studio.side - 1
    column, row = (max(0, min(last, int(place) // cell)) for place in (x, y))
    return row * studio.side + column


def toggle(tokens: Sequence[int], token: int) -> list[int]:
    """With ``token`` where it was not there, without it where it was; the eldest gives way to a ninth."""
    if token in tokens:
        return [other for other in tokens if other != token]
    return [*tokens, token][-MAX_CHOSEN:]


def parse_tokens(studio: Studio, text: str) -> list[int]:
    """ "18, 21" -> [18, 21]. Raises ConfigError for what is no token."""
    words, last = text.replace(",", " ").split(), studio.side**2 - 1
    if not all(word.isdecimal() and int(word) <= last for word in words) or not 0 < len(words) <= MAX_CHOSEN:
        raise ConfigError(f"name 1 to {MAX_CHOSEN} tokens, each from 0 to {last}, got '{text}'")
    return list(dict.fromkeys(map(int, words)))


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


def pattern(name: str, side: int, share: float) -> np.ndarray:
    """(G,G) bool, True where the second image's tokens go: about ``share`` of all.

    Raises ConfigError for a name that is not in ``PATTERNS``.
    """
    row, column = np.mgrid[:side, :side]
    if name == "left and right":
        rank = -column
    elif name == "top and bottom":
        rank = -row
    elif name == "centre":
        middle = (side - 1) / 2
        rank = np.hypot(row - middle, column - middle)
    elif name == "checkerboard":
        rank = (row + column) % 2 == 0
    elif name == "scattered":
        rank = np.random.default_rng(0).permutation(side * side).reshape(side, side)
    else:
        raise ConfigError(f"no pattern '{name}', only: {', '.join(PATTERNS)}")
    if name in ("left and right", "top and bottom"):  # whole lines
        return (side + rank - 1) < round(share * side)
    order = rank.ravel().argsort(kind="stable")
    mask = np.zeros(side * side, bool)
    mask[order[: round(share * side * side)]] = True
    return mask.reshape(side, side)


def mix(studio: Studio, first: Tokenized, second: Tokenized, mask: np.ndarray) -> np.ndarray:
    """(S,S,3) uint8: decoded from the second image's tokens where mask (G,G) is True, and the first's elsewhere."""
    ids = np.where(mask.ravel(), second.ids, first.ids)  # (K,)
    return decode(studio, ids[None])[0]


def draw_choice(studio: Studio, first: Tokenized, second: Tokenized, mask: np.ndarray) -> Image.Image:
    """Which region is whose: both images cut along the grid, the second's cells framed in blue, the first's in grey."""
    side, cell = studio.side, VIEW // studio.side
    pictures = [
        Image.fromarray(image.crop).resize((side * cell,) * 2, Image.Resampling.BICUBIC) for image in (first, second)
    ]
    stencil = Image.fromarray(mask.astype(np.uint8) * 255).resize((side * cell,) * 2, Image.Resampling.NEAREST)
    picture = Image.composite(pictures[1], pictures[0], stencil)
    draw = ImageDraw.Draw(picture)
    for whose, colour, width in ((False, "#d0d7de", 1), (True, "#0a84ff", 2)):
        for row, column in np.argwhere(mask == whose).tolist():
            x, y = column * cell, row * cell
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline=colour, width=width)
    return picture


# --------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------


def enlarged(pixels: np.ndarray) -> Image.Image:
    """(S,S,3) uint8; a small image is enlarged by a whole factor and unsmoothed, so that what is seen is its pixels."""
    side = len(pixels) * max(1, -(-(VIEW // 2) // len(pixels)))
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
