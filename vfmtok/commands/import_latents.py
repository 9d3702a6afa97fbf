"""The part of `vfmtok import-codes` that reads latents: LightningDiT's shards and REG's folders (published_latents.py).

Shapes: N images, b images of a block, (C,h,w) a latent.
"""

import argparse
import contextlib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vfmtok.code import code_to_dict
from vfmtok.commands.cache_check import change_statistics, classes_of, draw_decoded, size_of
from vfmtok.data import code_cache
from vfmtok.data.cache_layout import LATENT_DTYPES
from vfmtok.data.code_cache import CodeCacheWriter
from vfmtok.data.latent_cache import STATISTICS, LatentCache, measure, shown
from vfmtok.data.latent_statistics import LatentStatistics
from vfmtok.data.published_latents import FORMATS, LightningDiTLatents, REGLatents, read_statistics
from vfmtok.errors import ConfigError, DataError
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.weights.hashing import tokenizer_hash

BLOCK_VALUES = 2**22  # read before they are written
FLAGS = ("latent_dtype", "stats_per", "stats_file")


def add_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lightningdit", metavar="FOLDER", help="LightningDiT's *.safetensors (latents, latents_flip, labels)"
    )
    group.add_argument("--reg", metavar="FOLDER", help="REG's vae_latents (mean and standard deviation of each image)")
    group.add_argument("--latent-dtype", choices=LATENT_DTYPES, help="default float16, half the space")
    group.add_argument(
        "--stats-file",
        metavar="FILE",
        help="published statistics to normalise by: of LightningDiT, VFM-VAE, RAE or VFMTok2 (default: the folder's "
        "latents_stats.pt, else measured)",
    )
    group.add_argument("--stats-per", choices=("channel", "position"), help="measure the statistics of these latents")


def named(args: argparse.Namespace) -> list[str]:
    """The formats of which a folder is given."""
    return [name for name in FORMATS if getattr(args, name) is not None]


def check_unused(args: argparse.Namespace) -> None:
    """Raise ConfigError if a flag of latents is given with ids."""
    given = [name for name in FLAGS if getattr(args, name) is not None]
    if given:
        raise ConfigError(f"--{given[0].replace('_', '-')} belongs to latents (--lightningdit, --reg)")


def run(args: argparse.Namespace, tokenizer: Tokenizer) -> None:
    """Raises VFMTokError."""
    if args.count is not None:
        raise ConfigError("--count belongs to folders of ids: latents are as many as the folder lists")
    if args.stats_file is not None and args.stats_per is not None:
        raise ConfigError("give --stats-file or --stats-per, not both")
    kind = named(args)[0]
    folder = FORMATS[kind](Path(getattr(args, kind)).expanduser(), tokenizer.code)
    if args.stats_file is not None:
        published = read_statistics(Path(args.stats_file).expanduser(), tokenizer.code)
    else:
        published = folder.statistics(tokenizer.code) if args.stats_per is None else None
    drawn = "sample" if getattr(tokenizer, "encode_draws", False) else None
    metadata = {
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "dataset": str(folder.path),
        "dataset_fingerprint": hashlib.sha256(b"imported latents" + folder.labels.tobytes()).hexdigest(),
        "num_samples": len(folder),
        "classes": classes_of(args.dataset, folder.labels, folder.path),
        "views": list(folder.views),
        "seed": None,
        "image_size": tokenizer.config.image_size,
        "code": code_to_dict(tokenizer.code),
        "posterior": "moments" if folder.moments else drawn,
        "latent_dtype": args.latent_dtype or LATENT_DTYPES[0],
        "precision": None,  # the folders do not say
    }
    if not code_cache.begin(args.out, metadata):
        if args.stats_per is not None:
            change_statistics(args.out, args.stats_per)
        print(f"{args.out} is already complete: nothing to do")
        return
    with contextlib.closing(CodeCacheWriter(args.out)) as writer:
        _copy(folder, writer)
        draw_decoded(tokenizer, writer, folder.labels, metadata["classes"])
        about = _statistics(writer, published, args)
        writer.finish(statistics=about)
    cache = LatentCache(args.out)
    print(f"{cache.path}: {len(cache):,} records x {cache.num_views} views x {size_of(cache)}")
    print(f"{shown(cache.statistics)} ({about['source']})")
    print(f"contact sheet {cache.path / 'contact_sheet.png'}: pictures of their classes, if the tokenizer is the one")


def _copy(folder: LightningDiTLatents | REGLatents, writer: CodeCacheWriter) -> None:
    """Every block of images into the cache. Raises DataError: a file is odd, or the disk refuses."""
    block = max(1, BLOCK_VALUES // writer.written_rows()[0].size)
    for rows in tqdm(writer.blocks_to_do(block), unit=f" x {block} images"):
        writer.write(int(rows[0]), folder.read(rows), folder.labels[rows], np.zeros(len(rows), bool))


def _statistics(
    writer: CodeCacheWriter, published: LatentStatistics | None, args: argparse.Namespace
) -> dict[str, Any]:
    """Write the published statistics, or measured ones; what cache.json says of them. Raises DataError."""
    measured = measure(writer.written_rows(), args.stats_per or "channel")
    if published is None:
        measured.save(writer.path / STATISTICS)
        return {"per": args.stats_per or "channel", "count": measured.count, "source": "measured"}
    _check_belongs(published, measured, writer.path)
    published.save(writer.path / STATISTICS)
    return {"per": published.per, "count": published.count, "source": "published"}


def _check_belongs(published: LatentStatistics, measured: LatentStatistics, path: Path) -> None:
    """Raise DataError if latents normalised by the published statistics would be far from mean 0 and deviation 1."""
    given, found = published.per_channel(), measured.per_channel()
    ratio, shift = found.std / given.std, ((found.mean - given.mean) / given.std).abs()
    if not (torch.all(ratio > 0.5) and torch.all(ratio < 2) and torch.all(shift < 1)):
        raise DataError(
            f"the published statistics are not of the latents in {path}: normalised by them the mean of a channel is "
            f"{shift.max():.2g} and deviations are {ratio.min():.2g} to {ratio.max():.2g} (--stats-per measures others)"
        )
