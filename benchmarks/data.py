"""Images per second of one core, from LMDB and from WebDataset shards to 336 px random crops.

    python benchmarks/data.py [--seconds 3] [--size 336]
    python benchmarks/data.py --stream 20000

A bound is JPEG decoding alone, at the full size, which these crops need: Pillow's, and simplejpeg's where that is
installed. Ours runs with either decoder, and each run is compared with its own decoder's bound and with Pillow's,
which is the one that the target of 70% means. Beside them stands the published
path: full decode, BOX halving, bicubic resize of the whole image, crop, flip, float conversion and
normalisation. The photographs are those that scikit-image and scikit-learn ship, resized to 500x375 or
375x500, as JPEGs of quality 90 to 95. All paths take turns in one process on one thread, so that what else
the machine does touches all alike; the median of the turns counts.

--stream N: N made JPEGs of 64 px in shards of 1,000 and in an LMDB, in the orders that training reads them in. Their
rates are compared as above. Then two processes read an epoch of each, are killed (SIGKILL) after 100 and 97 steps, and
continue from the last step that both had finished; what they were given is checked: every sample exactly once. Memory
is each process's own resident pages that are no file's, after a tenth of the rest of the epoch and at its end.
"""

import argparse
import contextlib
import io
import itertools
import multiprocessing
import os
import signal
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
from vfmtok.data.dataset_folder import open_dataset, open_for_training
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


# --------------------------------------------------------------------------------------
# Small images in number: shards beside LMDB, two processes, killed and continued
# --------------------------------------------------------------------------------------

SIDE, SHARD, GLOBAL_BATCH, READERS = 64, 1000, 80, 2
DIES_AFTER = (100, 97)  # steps of each process


def make_small_images(folder: Path, count: int) -> dict[str, Path]:
    """The same images twice, by what holds them."""
    random, records = np.random.default_rng(0), []
    for number in range(count):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.BICUBIC)
        records.append(Record(jpeg(image, quality=90, subsampling=2), number % 10, f"{number:06d}.jpg"))
    write_records(folder / "lmdb", records)
    (folder / "shards").mkdir()
    for first in range(0, count, SHARD):
        with tarfile.open(folder / f"shards/{first // SHARD:04d}.tar", "w") as tar:
            for record in records[first : first + SHARD]:
                for suffix, content in ((".jpg", record.image), (".cls", str(record.label).encode())):
                    member = tarfile.TarInfo(record.name.removesuffix(".jpg") + suffix)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return {"LMDB": folder / "lmdb", "shards": folder / "shards"}


def small_images(path: Path, samples_seen: int = 0, rank: int = 0, world_size: int = 1) -> ImageLoader:
    """As training reads them."""
    records, _ = open_for_training(path)
    order = SampleOrder(len(records), GLOBAL_BATCH, rank=rank, world_size=world_size, shard_sizes=records.shard_sizes)
    return ImageLoader(records, RandomCrop(SIDE), order, samples_seen=samples_seen, num_workers=0, pin_memory=False)


def own_memory() -> float:
    """MiB of this process that are no file's."""
    resident, of_files = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - of_files) * os.sysconf("SC_PAGE_SIZE") / 2**20


def read_share(path: Path, count: int, rank: int, samples_seen: int, dies_after: int | None, log: Path) -> None:
    """To the end of the epoch; a line for every step that is finished, its samples and this process's memory."""
    torch.set_num_threads(1)
    with contextlib.closing(small_images(path, samples_seen, rank, READERS)) as loader, log.open("a") as file:
        for step in itertools.count(1):
            batch = next(loader)
            print(batch.samples_seen, f"{own_memory():.1f}", *batch.indices.tolist(), file=file, flush=True)
            if step == dies_after:
                os.kill(os.getpid(), signal.SIGKILL)
            if batch.samples_seen >= count:
                return


def read_killed_and_continued(path: Path, count: int, logs: list[Path]) -> None:
    """Prints what was found. Raises SystemExit if a sample did not come exactly once."""
    seen, given, memory = 0, [], []
    for dies_after in (DIES_AFTER, (None,) * READERS):
        spawn = multiprocessing.get_context("spawn")
        readers = [
            spawn.Process(target=read_share, args=(path, count, rank, seen, dies_after[rank], log))
            for rank, log in enumerate(logs)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        codes = [reader.exitcode for reader in readers]
        lines = [[line.split() for line in log.read_text().splitlines()] for log in logs]
        last = min(int(steps[-1][0]) for steps in lines)  # what a checkpoint of both could have been
        finished = [[line for line in steps if seen < int(line[0]) <= last] for steps in lines]
        given += [int(index) for steps in finished for line in steps for index in line[2:]]
        memory = [[float(line[1]) for line in steps] for steps in finished]
        print(f"  {path.name}: exit codes {codes}, samples {seen:,} to {last:,}")
        for log in logs:
            log.unlink()
        seen = last
    if sorted(given) != list(range(count)):
        raise SystemExit(
            f"{path}: the epoch had {len(given):,} samples, {len(set(given)):,} different ones of {count:,}"
        )
    grown = ", ".join(f"{steps[len(steps) // 10]:.1f} to {steps[-1]:.1f} MiB" for steps in memory)
    print(f"  {path.name}: every one of {count:,} samples exactly once; memory of the two: {grown}")


def stream(folder: Path, count: int, seconds: float) -> None:
    paths = make_small_images(folder, count)
    loaders = {name: small_images(path) for name, path in paths.items()}
    for loader in loaders.values():
        next(loader)  # the epoch's order, and the shards' index
    found = measure({name: lambda loader=loader: len(next(loader).images) for name, loader in loaders.items()}, seconds)
    print(f"median of {TURNS} turns, one thread, one process; {torch.backends.cpu.get_cpu_capability()}")
    for name, value in found.items():
        print(f"  {count:,} JPEGs of {SIDE} px from {name:6s} {1 / value:7.0f} images/s")
    print(f"  shards come at {found['LMDB'] / found['shards']:.0%} of the rate from LMDB")
    for path in paths.values():
        read_killed_and_continued(path, count, [folder / f"reader{rank}" for rank in range(READERS)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="for each path (default 3)")
    parser.add_argument("--size", type=int, default=336)
    parser.add_argument("--stream", type=int, metavar="N", help="small images in number instead: a multiple of 1,000")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.stream is not None:
            if args.stream < 10 * SHARD or args.stream % SHARD:
                parser.error("--stream takes a multiple of 1,000, from 10,000")
            return stream(Path(folder), args.stream, args.seconds)
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
