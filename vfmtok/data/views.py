"""The views of an image that a cache keeps: crops, and their mirror images.

A kind of views is a row of ``VIEWS``. Shapes: C crops of an image, V views.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vfmtok.data.transforms import SHIFTS, TEN_CROP_RANGES, EvaluationCrop, RandomCrops, ShiftedCrops, TenCrop


@dataclass(frozen=True)
class View:
    name: str
    crop: int  # which of the transform's C crops
    mirrored: bool


CENTRE_VIEWS = [View("centre", 0, False), View("centre flipped", 0, True)]


def ten_crop_views(ranges: tuple[float, ...]) -> list[View]:
    """Ten views for each range: five crops, then their mirror images."""
    places = ("top left", "top right", "bottom left", "bottom right", "centre")
    return [
        View(f"{crop_range} {place}{' flipped' if mirrored else ''}", r * len(places) + p, mirrored)
        for r, crop_range in enumerate(ranges)
        for mirrored in (False, True)
        for p, place in enumerate(places)
    ]


def shifted_views() -> list[View]:
    """The crop, its shifts by one pixel, then the mirror images of all."""
    names = ["centre" if shift == (0, 0) else "down {} right {}".format(*shift) for shift in SHIFTS]
    return [
        View(name + (" flipped" if mirrored else ""), crop, mirrored)
        for mirrored in (False, True)
        for crop, name in enumerate(names)
    ]


def random_views(count: int) -> list[View]:
    return [View(f"random {i}", i, False) for i in range(count)]


RANDOM_VIEWS = 10  # of "random", unless another number is asked for

# What `--views` says -> views of (size, number of random views, seed): the transform that makes an image's crops, and
# the views made of them, of which the first is never mirrored.
VIEWS: dict[str, Callable[[int, int, int], tuple[Callable, list[View]]]] = {
    "center": lambda size, count, seed: (EvaluationCrop(size), CENTRE_VIEWS[:1]),
    "flip": lambda size, count, seed: (EvaluationCrop(size), CENTRE_VIEWS),
    "shift": lambda size, count, seed: (ShiftedCrops(size), shifted_views()),
    "ten-crop": lambda size, count, seed: (TenCrop(size), ten_crop_views(TEN_CROP_RANGES)),
    "random": lambda size, count, seed: (RandomCrops(size, count, seed), random_views(count)),
}


def count_views(kind: str, num_random: int | None) -> int:
    """V of a kind of views; ``num_random`` as `--num-random-views` says it."""
    _, views = VIEWS[kind](1, RANDOM_VIEWS if num_random is None else num_random, 0)
    return len(views)
