"""Encoded image files to square uint8 crops: the training crop, the evaluation crop, the views of a cache.

All crops share one geometry (``resize_plan``): halve with BOX while the short side is at least twice the
target, then bicubic to the rounded size, then cut a square. A crop is a function of the file's bytes and
(seed, epoch, index) alone, so workers and ranks change nothing.

Crops are uint8 (3,S,S); ``to_unit_range`` makes them float in [-1,1], and belongs on the device: a
quarter of the bytes cross the bus and the worker is spared the arithmetic.

Shapes: B batch, V views, S crop side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import get_sampling
from torch import Tensor

from vfmtok.data.image_files import as_rgb, open_image, reasons

try:
    import simplejpeg  # optional, see _decode_pixels
except ImportError:
    simplejpeg = None

MIN_CROP_FRACTION = 0.8  # a training crop covers at least this fraction of the short side
TEN_CROP_RANGES = (1.05, 1.1)  # short side of the image that the five crops are cut from, in crop sides
# The shifts of ``ShiftedCrops`` (down, right) in pixels; none first.
SHIFTS = ((0, 0), *((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)))
ORIENTATION = 0x0112  # the EXIF tag

# A resized image of more pixels than this is never made whole (a 1 x 10,000 image would fill the memory).
_MAX_RESIZED_PIXELS = 32 * 2**20


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 (...,3,S,S) -> contiguous float32 in [-1,1]: x / 127.5 - 1."""
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


# --------------------------------------------------------------------------------------
# Randomness
# --------------------------------------------------------------------------------------


class CounterRandom:
    """Random draws that are a function of their address (seed, epoch, index).

    Philox is a counter-based generator: the address is its counter, there is no state to carry. Only raw
    words are used, which NumPy keeps the same in every version (it does not promise that for ``integers``).
    """

    def __init__(self, seed: int, epoch: int, index: int):
        self._words = np.random.Philox(key=[seed & (2**64 - 1), 0x76666D746F6B], counter=[0, 0, epoch, index])

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound)."""
        return (int(self._words.random_raw()) * bound) >> 64


# --------------------------------------------------------------------------------------
# Decoding
# --------------------------------------------------------------------------------------


def decode_rgb(image: Image.Image) -> Image.Image:
    """Decode to 8-bit RGB, upright: EXIF orientation applied, first frame, other modes as ``as_rgb`` says.

    Args:
        image: as ``open_image`` gives it, decoded or not.

    Raises:
        NotAnImage: the file is truncated or damaged, or would decode to an absurd size.
    """
    with reasons("damaged image"):
        image.load()
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        return image if image.mode == "RGB" and "transparency" not in image.info else as_rgb(image)


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info and image.format in ("JPEG", "WEBP"):  # parsing costs more than looking
        return 1
    return image.getexif().get(ORIENTATION, 1)


# --------------------------------------------------------------------------------------
# Geometry
# --------------------------------------------------------------------------------------


class ResizePlan(NamedTuple):
    halvings: int
    resized: tuple[int, int]  # (width, height)


def resize_plan(size: tuple[int, int], short_side: int) -> ResizePlan:
    """(width, height) of the original -> the way to the size whose short side is ``short_side``."""
    width, height = size
    halvings = 0
    while min(width, height) >= 2 * short_side:
        width, height, halvings = width // 2, height // 2, halvings + 1
    scale = short_side / min(width, height)
    return ResizePlan(halvings, (round(width * scale), round(height * scale)))


@dataclass(frozen=True)
class Window:
    """The square to cut: short side of the resized image, and the corner and side of the square in it."""

    short_side: int
    left: int
    top: int
    side: int


def centre_window(size: tuple[int, int], side: int) -> Window:
    """The evaluation crop of an image of (width, height)."""
    width, height = resize_plan(size, side).resized
    return Window(side, (width - side) // 2, (height - side) // 2, side)


def random_window(size: tuple[int, int], side: int, random: CounterRandom) -> Window:
    """A training crop of an image of (width, height): random short side, random offset."""
    longest = math.ceil(side / MIN_CROP_FRACTION)
    short_side = side + random.below(longest - side + 1)
    width, height = resize_plan(size, short_side).resized
    top = random.below(height - side + 1)
    left = random.below(width - side + 1)
    return Window(short_side, left, top, side)


def five_windows(size: tuple[int, int], side: int, crop_range: float) -> list[Window]:
    """Corners (top left, top right, bottom left, bottom right) and centre of the evaluation crop of
    side int(side * crop_range).

    It is truncated, as published: at 336 the ranges 1.05 and 1.1 give 352 (of 352.8) and 369 (of 369.6).
    Products that are whole numbers stay what they are: binary 1.05 and 1.1 lie above the decimal ones.
    """
    outer = centre_window(size, int(side * crop_range))
    end, middle = outer.side - side, round((outer.side - side) / 2)
    corners = [(0, 0), (end, 0), (0, end), (end, end), (middle, middle)]
    return [Window(outer.short_side, outer.left + x, outer.top + y, side) for x, y in corners]


# --------------------------------------------------------------------------------------
# Cutting
# --------------------------------------------------------------------------------------


def cut_exact(image: Image.Image, window: Window) -> np.ndarray:
    """RGB image -> (side, side, 3) uint8 by Pillow's own filters, as published."""
    plan = resize_plan(image.size, window.short_side)
    for _ in range(plan.halvings):
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    left, top, side = window.left, window.top, window.side
    if math.prod(plan.resized) > _MAX_RESIZED_PIXELS:  # only the square, equal but for rounding
        x, y = image.width / plan.resized[0], image.height / plan.resized[1]
        box = (left * x, top * y, (left + side) * x, (top + side) * y)
        return np.array(image.resize((side, side), Image.BICUBIC, box=box))
    image = image.resize(plan.resized, Image.BICUBIC)
    return np.array(image.crop((left, top, left + side, top + side)))


def cut_fast(pixels: np.ndarray, window: Window, original: tuple[int, int]) -> np.ndarray:
    """(h,w,3) uint8 -> (side, side, 3) uint8, within 1/255 on average of ``cut_exact``, several times faster.

    Args:
        pixels: of the image, or of its JPEG decoded at half the original's size.
        original: (width, height) the window refers to.

    The resize is PyTorch's antialiased uint8 bicubic: the same filter as Pillow's, vectorised. It starts at
    the top left corner, so what lies right of and below the window is not computed.
    """
    while min(pixels.shape[:2]) >= 2 * window.short_side:  # what reduced decoding left of the halvings
        height, width = pixels.shape[:2]
        pixels = np.array(Image.fromarray(pixels).resize((width // 2, height // 2), Image.BOX))
    resized = resize_plan(original, window.short_side).resized
    scales = (resized[0] / pixels.shape[1], resized[1] / pixels.shape[0])
    right, bottom = window.left + window.side, window.top + window.side
    if right * bottom > 8 * window.side**2:  # a long image, cut far from the corner
        box = (window.left / scales[0], window.top / scales[1], right / scales[0], bottom / scales[1])
        return np.array(Image.fromarray(pixels).resize((window.side, window.side), Image.BICUBIC, box=box))
    return _resize_from_corner(pixels, window, scales)


def _resize_from_corner(pixels: np.ndarray, window: Window, scales: Sequence[float]) -> np.ndarray:
    """The window of pixels (h,w,3) uint8 resized by ``scales`` (x, y): (side, side, 3) uint8, a view of more."""
    width, height = window.left + window.side, window.top + window.side
    # The cubic reaches two pixels around its centre, more by the factor of shrinking, and one to be safe.
    rows = math.ceil(height / scales[1] + 2 * max(1 / scales[1], 1)) + 1
    # Added after permuting, the batch axis would hide from PyTorch that channels come last: several times slower.
    image = torch.from_numpy(pixels[:rows])[None].permute(0, 3, 1, 2)  # (1,3,h,w)
    resized = torch.ops.aten._upsample_bicubic2d_aa(image, [height, width], False, scales[1], scales[0])
    return resized[0].permute(1, 2, 0).numpy()[window.top :, window.left :]


# --------------------------------------------------------------------------------------
# Transforms: (bytes, epoch, index) -> (V,S,S,3) or (S,S,3) uint8
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationCrop:
    """The centre square, exactly as published."""

    size: int

    def __call__(self, data: bytes, epoch: int = 0, index: int = 0) -> Tensor:
        """Encoded image -> uint8 (3,S,S). Raises DataError for a damaged image."""
        image = decode_rgb(open_image(data, decode=False))
        return _channels_first(cut_exact(image, centre_window(image.size, self.size)))


@dataclass(frozen=True)
class RandomCrop:
    """A random square and, half the time, its mirror image.

    Args:
        seed: with epoch and index, what the crop is a function of.
        flip: mirror half of the crops.
        centred: the centre square at the target size (the evaluation crop's), so that only flips are random.
        exact: Pillow's resize of the full decode, instead of the fast path (see ``cut_fast``). The
            fast path gives the same bytes on machines with the same vector instructions and may differ by
            one level elsewhere.
    """

    size: int
    seed: int = 0
    flip: bool = True
    centred: bool = False
    exact: bool = False

    def __call__(self, data: bytes, epoch: int, index: int) -> Tensor:
        """Encoded image -> uint8 (3,S,S). Raises DataError for a damaged image."""
        image = open_image(data, decode=False)
        original = _upright_size(image)
        random = CounterRandom(self.seed, epoch, index)
        window = centre_window(original, self.size) if self.centred else random_window(original, self.size, random)
        mirrored = self.flip and random.below(2) == 1
        if self.exact:
            crop = cut_exact(decode_rgb(image), window)
        else:
            halvings = resize_plan(original, window.short_side).halvings
            crop = cut_fast(_decode_pixels(image, data, halvings), window, original)
        return _channels_first(crop, mirrored)


@dataclass(frozen=True)
class TenCrop:
    """Five crops of the evaluation crop enlarged by every range: uint8 (5 * ranges,3,S,S), no mirror images."""

    size: int
    ranges: tuple[float, ...] = TEN_CROP_RANGES

    def __call__(self, data: bytes, epoch: int = 0, index: int = 0) -> Tensor:
        image = decode_rgb(open_image(data, decode=False))
        windows = [window for r in self.ranges for window in five_windows(image.size, self.size, r)]
        return torch.stack([_channels_first(cut_exact(image, window)) for window in windows])


@dataclass(frozen=True)
class ShiftedCrops:
    """The evaluation crop and its eight shifts by one pixel, the edge repeated: uint8 (9,3,S,S), none shifted first."""

    size: int

    def __call__(self, data: bytes, epoch: int = 0, index: int = 0) -> Tensor:
        crop = EvaluationCrop(self.size)(data)
        last = self.size - 1
        shifted = []
        for down, right in SHIFTS:
            rows = torch.arange(-down, self.size - down).clamp(0, last)
            columns = torch.arange(-right, self.size - right).clamp(0, last)
            shifted.append(crop[:, rows][:, :, columns])
        return torch.stack(shifted)


@dataclass(frozen=True)
class RandomCrops:
    """``count`` independent training crops: uint8 (count,3,S,S)."""

    size: int
    count: int
    seed: int = 0

    def __call__(self, data: bytes, epoch: int, index: int) -> Tensor:
        crop = RandomCrop(self.size, self.seed)
        return torch.stack([crop(data, epoch * self.count + i, index) for i in range(self.count)])


def _upright_size(image: Image.Image) -> tuple[int, int]:
    with reasons("damaged image"):
        if image.format != "JPEG":
            image.load()  # EXIF may come after a PNG's pixels, and a TIFF is turned when they are read
        return image.size[::-1] if _orientation(image) >= 5 else image.size


def _decode_pixels(image: Image.Image, data: bytes, halvings: int) -> np.ndarray:
    """Decode an opened image to (h,w,3) uint8, at half the size where that changes little.

    Where simplejpeg is installed it decodes ordinary JPEGs: the same library underneath gives the same
    bytes, with less copying. What it does not like is Pillow's to judge.
    """
    full = not _decode_reduced(image, halvings)
    if simplejpeg is not None and full and image.format == "JPEG" and image.mode == "RGB" and _orientation(image) == 1:
        try:
            return simplejpeg.decode_jpeg(data)
        except ValueError:
            pass
    return np.array(decode_rgb(image))


def _decode_reduced(image: Image.Image, halvings: int) -> bool:
    """Let a JPEG decode at half its size, where libjpeg's reduced transform averages 2x2 pixels as BOX does.

    Left out where the two would differ by a level on average: Pillow's BOX rounds halves up, which libjpeg
    does not, so a second halving (half a level each) is left to BOX; subsampled colour is only averaged alike
    if BOX follows; and an odd side is spread over the whole by BOX and not by libjpeg.
    """
    if not halvings or image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return False
    subsampled = image.mode == "RGB" and get_sampling(image) != 0
    reduced = image.width % 2 == 0 and image.height % 2 == 0 and (halvings > 1 or not subsampled)
    if reduced:
        image.draft(image.mode, (image.width // 2, image.height // 2))
    return reduced


def _channels_first(pixels: np.ndarray, mirrored: bool = False) -> Tensor:
    """(S,S,3) uint8 -> (3,S,S), a view with the channels last in memory, mirrored if asked."""
    crop = torch.from_numpy(pixels).permute(2, 0, 1)
    return crop.flip(2) if mirrored else crop
