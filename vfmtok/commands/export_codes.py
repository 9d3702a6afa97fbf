"""`vfmtok export-codes CACHE OUT --to lightningdit`: a latent cache as other programs read it."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vfmtok import distributed
from vfmtok.data.dataset_folder import open_dataset
from vfmtok.data.latent_cache import LatentCache
from vfmtok.data.latent_export import WRITERS, names_of
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import BlockOrder
from vfmtok.data.transforms import EvaluationCrop
from vfmtok.errors import ConfigError, DataError
from vfmtok.files import read_json, replace_file, write_json

UNFINISHED = "unfinished_export.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a latent cache as LightningDiT's shards (latents, latents_flip, labels) or as REG's folder (mean and "
        "standard deviation of each image; with --dataset the images beside them), with latents_stats.pt."
    )
    parser.add_argument("cache", metavar="CACHE", help="made by `vfmtok codes` with --views center or flip")
    parser.add_argument("out", metavar="OUT", help="the folder to write: empty, not there, or unfinished")
    parser.add_argument("--to", choices=tuple(WRITERS), required=True, help="whose program is to read it")
    parser.add_argument("--dataset", metavar="PATH", help="of REG: the dataset of the cache, for its images")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    with distributed.group() as world:
        if world.size > 1:
            raise ConfigError("`vfmtok export-codes` runs in one process")
        _export(args)


def _export(args: argparse.Namespace) -> None:
    if args.dataset is not None and args.to != "reg":
        raise ConfigError("--dataset belongs to --to reg, whose training sees the images too")
    cache, out = LatentCache(Path(args.cache).expanduser()), Path(args.out).expanduser()
    mark = _begin(cache, out, args)
    with tqdm(total=len(cache), unit="image") as bar:
        WRITERS[args.to](cache, out, bar.update)
    if args.dataset is not None:
        _write_images(cache, args.dataset, out / "images")
    mark.unlink()
    print(f"{out}: {len(cache):,} images as {args.to} reads them")


def _begin(cache: LatentCache, out: Path, args: argparse.Namespace) -> Path:
    """The file that marks ``out`` as this export's until it is complete: one that was interrupted is written again.

    Raises DataError: the folder holds something else.
    """
    mark = out / UNFINISHED
    job = {"cache": str(cache.path.resolve()), "to": args.to, "dataset": args.dataset, **cache.metadata}
    try:
        out.mkdir(parents=True, exist_ok=True)
        strangers = [entry.name for entry in out.iterdir() if entry != mark]
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}") from None
    if strangers and read_json(mark) != job:
        raise DataError(f"{out} is not empty (it has {min(strangers)}): choose another folder")
    write_json(mark, job)
    return mark


def _write_images(cache: LatentCache, dataset: str, folder: Path) -> None:
    """The evaluation crops as PNG, beside the list of their labels. Raises DataError."""
    records = open_dataset(dataset)
    if records.fingerprint != cache.metadata["dataset_fingerprint"]:
        raise DataError(f"the {cache} is not of the images in {dataset}")
    size, names = cache.metadata["image_size"], names_of(cache)
    blocks = np.array_split(np.arange(len(cache)), max(1, len(cache) // 64))
    loader = ImageLoader(records, EvaluationCrop(size), BlockOrder(blocks), num_workers=0)
    with tqdm(total=len(cache), unit="image") as bar:
        for rows, batch in zip(blocks, loader, strict=True):
            for row, image in zip(rows.tolist(), batch.images.permute(0, 2, 3, 1).numpy(), strict=True):
                file = folder / f"{names[row]}.png"
                try:
                    file.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise DataError(f"cannot write {file.parent}: {error.strerror}") from None
                picture = Image.fromarray(image)
                replace_file(file, lambda opened, p=picture: p.save(opened, "PNG"))
            bar.update(len(rows))
    loader.close()
    listed = [[f"{name}.png", label] for name, label in zip(names, cache.labels.tolist(), strict=True)]
    write_json(folder / "dataset.json", {"labels": listed})
