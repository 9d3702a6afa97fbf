"""Data at ImageNet's size: rate, peak memory and start-up time of every stage that touches every image.

    python benchmarks/rehearsal.py FOLDER [--images 10000 100000 1281167] [--only shards]

Images are JPEGs of 16 px, made once and varied by a few bytes at their end, in 1,000 classes of ImageNet's sizes (732
to 1,300 images each, in proportion). A tokenizer that gives any ids stands for the network: what is measured is the
bookkeeping around it. Every stage runs in a process of its own. Its memory is what it takes beyond the imported
libraries (about 410 MiB): resident pages that are not of a file. 1,281,167 images need 15 GB in FOLDER, which is
removed after each size.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from machine import print_machine
from PIL import Image
from torch import Tensor, nn

from vfmtok import cli, distributed
from vfmtok.code import Ids, Segment
from vfmtok.commands import codes as codes_command
from vfmtok.config import config_from_dict
from vfmtok.data.code_cache import CodeCache
from vfmtok.data.dataset_folder import open_for_training
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import SampleOrder
from vfmtok.data.transforms import RandomCrop
from vfmtok.evaluation.agreement import largest_overlap, positional_unigram
from vfmtok.evaluation.image_sources import open_images
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.train_generator import train_generator

IMAGENET = 1_281_167
CLASSES, SIDE, SHARD = 1000, 16, 10_000
TOKENS, CODES, VIEWS = 256, 16_384, 10
ALONE = distributed.World(0, 1, torch.device("cpu"))


# --------------------------------------------------------------------------------------
# Images
# --------------------------------------------------------------------------------------


def class_sizes(images: int) -> np.ndarray:
    """(1000,): 895 classes of 1,300 images and 105 of fewer, down to 732, scaled to ``images`` in all."""
    sizes = np.full(CLASSES, 1300.0)
    sizes[::10][:100], sizes[5:50:10] = np.linspace(732, 1299, 100), 1200
    exact = np.cumsum(sizes) / sizes.sum() * images
    return np.diff(np.round(exact).astype(np.int64), prepend=0)


def pictures(images: int) -> Iterator[tuple[int, str, bytes]]:
    """(label, name, JPEG) of every image."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(256):
        content = io.BytesIO()
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.BICUBIC).save(content, "JPEG", quality=90)
        made.append(content.getvalue())
    number = 0
    for label, count in enumerate(class_sizes(images).tolist()):
        for _ in range(count):
            yield label, f"{number:08d}", made[number % 256] + number.to_bytes(4, "little")
            number += 1


def write_folders(folder: Path, images: int) -> None:
    for label, name, content in pictures(images):
        path = folder / f"folders/n{label:08d}/{name}.JPEG"
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        path.write_bytes(content)


def write_shards(folder: Path, images: int) -> None:
    """In an order that mixes the classes, as shards have."""
    (folder / "shards").mkdir()
    count = -(-images // SHARD)
    with contextlib.ExitStack() as stack:
        tars = [stack.enter_context(tarfile.open(folder / f"shards/{n:05d}.tar", "w")) for n in range(count)]
        for number, (label, name, content) in enumerate(pictures(images)):
            tar = tars[number % count]
            for suffix, member in ((".jpg", content), (".cls", str(label).encode())):
                info = tarfile.TarInfo(name + suffix)
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
            tar.members.clear()


# --------------------------------------------------------------------------------------
# Stages: each returns seconds until it had started, and images handled after that
# --------------------------------------------------------------------------------------


class AnyIds(nn.Module):
    """Stands for a tokenizer: ids that are a hash of the pixels."""

    code = Ids((Segment(TOKENS, CODES, (16, 16)),))
    config = SimpleNamespace(image_size=SIDE)
    device = torch.device("cpu")

    def encode(self, images: Tensor) -> SimpleNamespace:
        start = (images.sum((1, 2, 3)) * 97).abs().long()[:, None]
        return SimpleNamespace(ids=(start + torch.arange(TOKENS) * 41) % CODES)

    def decode_to_uint8(self, ids: Tensor, size: int) -> Tensor:
        return torch.zeros(len(ids), size, size, 3, dtype=torch.uint8)


def command(*arguments: str) -> None:
    if cli.main(list(map(str, arguments))) != 0:
        raise SystemExit(f"failed: {arguments}")


def prepare_folders(folder: Path, images: int) -> tuple[float, int]:
    command("prepare", folder / "folders", folder / "data")
    return 0.0, images


def prepare_shards(folder: Path, images: int) -> tuple[float, int]:
    command("prepare", folder / "shards", folder / "data2")
    return 0.0, images


def stats(folder: Path, images: int) -> tuple[float, int]:
    command("stats", folder / "data")
    return 0.0, images


def load(path: Path, images: int) -> tuple[float, int]:
    """Opening, the first epoch's order and the first batch; then up to 50,000 images more."""
    start = time.perf_counter()
    records, _ = open_for_training(path)
    loader = ImageLoader(records, RandomCrop(SIDE, 0), SampleOrder(len(records), 256), num_workers=1)
    next(loader)
    started = time.perf_counter() - start
    steps = min(images, 50_000) // 256
    for _ in range(steps):
        next(loader)
    loader.close()
    return started, steps * 256


def index_shards(folder: Path, images: int) -> tuple[float, int]:
    open_for_training(folder / "shards")
    return 0.0, images


def codes(folder: Path, images: int) -> tuple[float, int]:
    codes_command.open_tokenizer = lambda args, device: AnyIds()
    codes_command.tokenizer_hash = lambda tokenizer: "ab" * 32
    command(
        "codes", folder / "data/train_lmdb", folder / "codes", "--vq-ckpt", "none", "--views", "random",
        "--num-random-views", VIEWS, "--batch-size", 256, "--num-workers", 1,
    )  # fmt: skip
    return 0.0, images


def generator(folder: Path, images: int) -> tuple[float, int]:
    """From nothing to the end of the second step, validation included; a small GPT."""
    tree = {
        "generator": {"n_layer": 1, "n_head": 2, "dim": 32, "ffn_hidden": 32, "num_classes": CLASSES},
        "data": {"code_path": str(folder / "codes")},
        "optimizer": {"steps": 2},
        "run": {
            "results_dir": str(folder / "run"), "global_batch": 2, "precision": "none", "tensorboard": False,
            "validation_images": 4,
        },
    }  # fmt: skip
    start = time.perf_counter()
    train_generator(config_from_dict(tree, GeneratorRecipe), ALONE)
    return time.perf_counter() - start, 0


def batches(folder: Path, images: int) -> tuple[float, int]:
    """The cache's batches for training: opening, order and the first; then 200 of 256."""
    start = time.perf_counter()
    cache = CodeCache(folder / "codes")
    order = SampleOrder(len(cache), 256).batches()
    step = next(order)
    cache.batch(step.indices, 0, step.epochs)
    started = time.perf_counter() - start
    for _ in range(200):
        step = next(order)
        cache.batch(step.indices, 0, step.epochs)
    return started, 200 * 256


def agreement(folder: Path, images: int) -> tuple[float, int]:
    """What `vfmtok agreement` reads of the cache: the floor's ids, and 100 samples' overlap within its bounds."""
    cache = CodeCache(folder / "codes")
    floor = positional_unigram(cache, torch.arange(CLASSES), 0)
    largest_overlap(floor[:100], cache, 10_000)
    return 0.0, 0


def measure(path: Path, images: int) -> tuple[float, int]:
    """What `vfmtok measure` does before the network: listing, then reading up to 50,000 images."""
    start = time.perf_counter()
    source = open_images(path, SIDE)
    next(iter(source.read(0, 1)))
    started, some = time.perf_counter() - start, min(len(source), 50_000)
    for _ in source.read(0, some):
        pass
    return started, some


STAGES: dict[str, Callable[[Path, int], tuple[float, int]]] = {
    "prepare, from class folders": prepare_folders,
    "prepare, from shards": prepare_shards,
    "stats": stats,
    "LMDB: start and load": lambda folder, images: load(folder / "data/train_lmdb", images),
    "shards: index, once": index_shards,
    "shards: start and load": lambda folder, images: load(folder / "shards", images),
    f"codes, {VIEWS} views": codes,
    "codes: start and batches": batches,
    "generator: two steps": generator,
    "agreement, of the cache": agreement,
    "measure, class folders": lambda folder, images: measure(folder / "folders", images),
    "measure, LMDB": lambda folder, images: measure(folder / "data/train_lmdb", images),
}


# --------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------


class PeakMemory:
    """What this process takes at most beyond what it has at the start, bytes: resident pages that are no file's."""

    def __enter__(self) -> "PeakMemory":
        self.peak, self._start, self._ends = 0, self._now(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ends.wait(0.05):
            self.peak = max(self.peak, self._now() - self._start)

    @staticmethod
    def _now() -> int:
        resident, of_files = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        return (resident - of_files) * os.sysconf("SC_PAGE_SIZE")

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()


def run_stage(name: str, folder: Path, images: int) -> None:
    """In this process; the last line that it prints is the result."""
    start = time.perf_counter()
    with PeakMemory() as memory:
        started, handled = STAGES[name](folder, images)
    seconds = time.perf_counter() - start
    result = {"seconds": seconds, "start": started, "images": handled, "own": memory.peak}
    print("\n" + json.dumps(result))


def rehearse(folder: Path, images: int, only: str) -> dict[str, dict]:
    results = {}
    names = [name for name in STAGES if only in name]
    writes = [write_shards] if all("shards" in name for name in names) else [write_folders, write_shards]
    for write in writes:
        start = time.perf_counter()
        write(folder, images)
        print(f"{images:,}: {write.__name__} {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    for name in names:
        arguments = [sys.executable, __file__, str(folder), "--images", str(images), "--stage", name]
        done = subprocess.run(arguments, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{name}: {done.stdout[-500:]}{done.stderr[-2000:]}")
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{images:,}: {name} {json.dumps(results[name])}", file=sys.stderr, flush=True)
        if name == "prepare, from shards":
            shutil.rmtree(folder / "data2")
    return results


def report(found: dict[int, dict[str, dict]], only: str) -> None:
    """A table; the last column continues the straight line through the last two sizes to 44M images."""
    print("| stage | " + " | ".join(f"{n:,} images" for n in found) + " |")
    print("|---" * (len(found) + 1) + "|")
    names = [name for name in STAGES if only in name]
    for name in names:
        cells = []
        for results in found.values():
            r = results[name]
            rate = f"{r['images'] / (r['seconds'] - r['start']):,.0f} images/s, " if r["images"] else ""
            start = f"start {r['start']:.1f} s, " if r["start"] else f"{r['seconds']:.0f} s, "
            cells.append(f"{rate}{start}{r['own'] >> 20} MiB")
        print(f"| {name} | " + " | ".join(cells) + " |")
    if len(found) > 1:
        (small, low), (large, high) = list(found.items())[-2:]
        print("\nMiB more per million images, and MiB at 44M on a straight line:")
        for name in names:
            slope = (high[name]["own"] - low[name]["own"]) / (large - small)
            at = high[name]["own"] + slope * (44e6 - large)
            print(f"  {name:30s} {slope * 1e6 / 2**20:8.1f} {at / 2**20:10.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder, removed at the end")
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, IMAGENET])
    parser.add_argument("--only", default="", help="stages with this in their name, which must not need others")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.stage:
        return run_stage(args.stage, args.folder, args.images[0])
    if args.folder.exists():
        parser.error(f"{args.folder} is there: name a new folder")
    found = {}
    try:
        for images in args.images:
            args.folder.mkdir(parents=True)
            found[images] = rehearse(args.folder, images, args.only)
            shutil.rmtree(args.folder)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    print_machine(torch.device("cpu"))
    report(found, args.only)


if __name__ == "__main__":
    main()
