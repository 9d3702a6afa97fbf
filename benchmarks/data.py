"""Images per second of one core, from LMDB and from WebDataset shards to 336 px random crops.

    python benchmarks/data.py [--seconds 3] [--size 336]

A bound is JPEG decoding alone, at the full size, which these crops need: Pillow's, and simplejpeg's where that is
installed. Ours runs with either decoder, and each run is compared with its own decoder's bound and with Pillow's,
which is the one that the target of 70% means. Beside them stands the published
path: full decode, BOX halving, bicubic resize of the whole image, crop, flip, float conversion and
normalisation. The photographs are those that scikit-image and scikit-learn ship, resized to 500x375 or
375x500, as JPEGs of quality 90 to 95. All paths take turns in one process on one thread, so that what else
the machine does touches all alike; the median of the turns counts.
"""

import argparse
import io
import itertools
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import print_header, print_machine, print_row
from photographs import jpeg, photographs
from PIL import Image
from torchvision.transforms import functional

from vfmtok.data import transforms
from vfmtok.data.dataset_folder import open_dataset
from vfmtok.data.image_files import open_image
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import SampleOrder
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.data.shards import ShardDataset
from vfmtok.data.transforms import CounterRandom, RandomCrop, decode_rgb, random_window

BATCH = 32
TURNS = 9

PILLOW, SIMPLEJPEG = "Pillow decoding alone", "simplejpeg decoding alone"
PUBLISHED, CHECK = "published path (Pillow), from memory", "reading and checking the record alone"
# our paths, each with the bound of the decoder it uses
OURS = {
    "ours with Pillow": PILLOW,
    "ours with simplejpeg": SIMPLEJPEG,
    "ours with Pillow, exact=True": PILLOW,
    "ours with simplejpeg, exact=True": SIMPLEJPEG,
    "ours with Pillow, from shards": PILLOW,
    "ours with simplejpeg, from shards": SIMPLEJPEG,
}
CHECK_SHARDS = "reading the sample of a shard alone"


def make_dataset(folder: Path) -> RecordDataset:
    """96 JPEGs: parts of every photograph, both orientations, 4:2:0 and 4:4:4."""
    records = []
    for number, (photo, variant) in enumerate(itertools.product(photographs(), range(12))):
        size = (500, 375) if variant % 3 else (375, 500)
        scale = max(new / old for new, old in zip(size, photo.size, strict=True)) * (1 + 0.02 * variant)
        resized = photo.resize(
            [max(round(side * scale), s) for side, s in zip(photo.size, size, strict=True)], Image.LANCZOS
        )
        image = resized.crop((0, 0, *size))
        data = jpeg(image, quality=90 + number % 6, subsampling=0 if variant % 4 == 0 else 2)
        records.append(Record(data, number % 10, f"{number}.jpg"))
    write_records(folder, records)
    sizes = [len(record.image) for record in records]
    print(f"{len(records)} JPEGs of 500x375 or 375x500, quality 90-95, {np.mean(sizes) / 1024:.0f} KiB on average")
    return RecordDataset(folder)


def make_shards(records: RecordDataset, folder: Path) -> ShardDataset:
    """The same images in shards of 16, with their labels."""
    for first in range(0, len(records), 16):
        with tarfile.open(folder / f"{first // 16:02d}.tar", "w") as tar:
            for index in range(first, min(first + 16, len(records))):
                record = records[index]
                for suffix, content in ((".jpg", record.image), (".cls", str(record.label).encode())):
                    member = tarfile.TarInfo(f"{index}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return open_dataset(folder)


def decode_only(records: RecordDataset, index: int) -> None:
    decode_rgb(open_image(IMAGES[index], decode=False))


def published(records: RecordDataset, index: int, size: int) -> torch.Tensor:
    """The published training transform, written from its description."""
    image = Image.open(io.BytesIO(IMAGES[index])).convert("RGB")
    random = CounterRandom(0, 0, index)
    window = random_window(image.size, size, random)
    while min(image.size) >= 2 * window.short_side:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    scale = window.short_side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
    pixels = np.array(image)[window.top : window.top + size, window.left : window.left + size]
    image = Image.fromarray(pixels)
    if random.below(2):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return functional.normalize(functional.to_tensor(image), [0.5] * 3, [0.5] * 3)


IMAGES: list[bytes] = []


def measure(paths: dict[str, Callable[[], int]], seconds: float) -> dict[str, float]:
    """Seconds per image of every path; each call handles and returns some number of images."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(TURNS):
        for name, call in paths.items():
            count, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds / TURNS:
                count += call()
            times[name].append(elapsed / count)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="for each path (default 3)")
    parser.add_argument("--size", type=int, default=336)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        records = make_dataset(Path(folder) / "lmdb")
        IMAGES.extend(records[i].image for i in range(len(records)))
        shards = Path(folder) / "shards"
        shards.mkdir()
        report(measure(make_paths(records, make_shards(records, shards), args.size), args.seconds))


def make_paths(records: RecordDataset, shards: ShardDataset, size: int) -> dict[str, Callable[[], int]]:
    counter = itertools.count()

    def each(function: Callable[[int], object]) -> Callable[[], int]:
        def call() -> int:
            function(next(counter) % len(records))
            return 1

        return call

    def batches(source: RecordDataset | ShardDataset, transform: RandomCrop) -> Callable[[], int]:
        loader = ImageLoader(source, transform, SampleOrder(len(source), BATCH), num_workers=0, pin_memory=False)
        return lambda: len(next(loader).images)

    paths = {PILLOW: each(lambda i: decode_only(records, i)), PUBLISHED: each(lambda i: published(records, i, size))}
    if transforms.simplejpeg is not None:
        paths[SIMPLEJPEG] = each(lambda i: transforms.simplejpeg.decode_jpeg(IMAGES[i]))
    for name, bound in OURS.items():
        if bound in paths:
            source = shards if "shards" in name else records
            call = batches(source, RandomCrop(size, exact="exact" in name))
            paths[name] = call if bound == SIMPLEJPEG else without_simplejpeg(call)
    paths[CHECK] = each(lambda i: records[i])
    paths[CHECK_SHARDS] = each(lambda i: shards[i])
    return paths


def without_simplejpeg(call: Callable[[], int]) -> Callable[[], int]:
    """The same call as on a machine that has Pillow only."""

    def with_pillow() -> int:
        installed, transforms.simplejpeg = transforms.simplejpeg, None
        try:
            return call()
        finally:
            transforms.simplejpeg = installed

    return with_pillow


def report(seconds: dict[str, float]) -> None:
    """Times of an image. Ours go from LMDB, or shards, to uint8 batches; their bound is their own decoder alone."""
    print_machine(torch.device("cpu"))
    print(f"median of {TURNS} turns, one thread, one process; targets: 70% of {PILLOW}, 1.8x the published path")
    print_header("images/s", f"of {PILLOW}", "times the published path")
    for name, value in seconds.items():
        more = f"{1 / value:.0f}", f"{seconds[PILLOW] / value:.0%}", f"{seconds[PUBLISHED] / value:.2f}"
        print_row(name, value, seconds.get(OURS.get(name)), *more)
    if SIMPLEJPEG not in seconds:
        print("simplejpeg is not installed: neither its bound nor ours with it was measured")


if __name__ == "__main__":
    main()
