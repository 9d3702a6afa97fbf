"""`vfmtok import-codes OUT --ten-crop 1.1 FOLDER`: codes that other programs made, as a cache of ours.

Here LlamaGen's folders of ids; LightningDiT's and REG's of latents are read by import_latents.py.

Shapes: N images, b images of a block, V views, K tokens, S side.
"""

import argparse
import contextlib
import hashlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vfmtok import distributed
from vfmtok.code import Ids, Latents, code_to_dict
from vfmtok.commands import flags, import_latents
from vfmtok.commands.cache_check import classes_of, draw_decoded
from vfmtok.commands.models import open_tokenizer
from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCache, CodeCacheWriter
from vfmtok.data.published_codes import FLIP, TEN_CROP, PublishedCodes
from vfmtok.data.views import CENTRE_VIEWS, ten_crop_views
from vfmtok.errors import ConfigError, DataError
from vfmtok.metrics.usage import usage_of_counts
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.weights.hashing import tokenizer_hash

BLOCK = 1024  # images read before they are written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turn code folders of LlamaGen's extraction into a token cache for train_c2i.py --code-path. The folders "
        "do not say what their views are: name them. Two --ten-crop folders, 1.05 and 1.1, become one cache of 20 "
        "views. Files that repeat the first images at the end are dropped. LightningDiT's and REG's latents become a "
        "latent cache likewise. The same command again continues."
    )
    parser.add_argument("out", metavar="OUT", help="the folder of the cache")
    flags.add_tokenizer(parser)
    flags.add_set(parser, "tokenizer")
    parser.add_argument("--flip", metavar="FOLDER", help="codes of the evaluation crop and its mirror image")
    parser.add_argument(
        "--ten-crop",
        action="append",
        default=[],
        nargs=2,
        metavar=("RANGE", "FOLDER"),
        help="codes of --ten-crop --crop-range RANGE; may be given for several ranges",
    )
    parser.add_argument(
        "--count", type=flags.positive, metavar="N", help="images, 1281167 of ImageNet (default: until labels repeat)"
    )
    parser.add_argument("--dataset", metavar="PATH", help="a prepared dataset with the same classes, for their names")
    import_latents.add_arguments(parser.add_argument_group("latents instead of ids"))


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    with distributed.group() as world:
        if world.size > 1:
            raise ConfigError("`vfmtok import-codes` runs in one process")
        _import(args)


def _import(args: argparse.Namespace) -> None:
    latents = import_latents.named(args)
    if (args.flip is not None) + bool(args.ten_crop) + len(latents) != 1:
        raise ConfigError(
            "name what the views are: --flip FOLDER, or --ten-crop RANGE FOLDER; or latents: --lightningdit FOLDER, or "
            "--reg FOLDER"
        )
    tokenizer = open_tokenizer(args, torch.device("cpu"))
    holds = Latents if latents else Ids
    if not isinstance(tokenizer.code, holds):
        raise ConfigError(
            f"the folder holds {'latents' if latents else 'ids'}, and this tokenizer makes {tokenizer.code}"
        )
    if latents:
        import_latents.run(args, tokenizer)
    else:
        _import_ids(args, tokenizer)


def _import_ids(args: argparse.Namespace, tokenizer: Tokenizer) -> None:
    import_latents.check_unused(args)
    folders, views = _open(args, tokenizer)
    first = folders[0]
    for other in folders[1:]:
        if not np.array_equal(first.labels, other.labels):
            raise DataError(f"{first.path} and {other.path} are not of the same images: their labels differ")
    metadata = {
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "dataset": ", ".join(str(folder.path) for folder in folders),
        "dataset_fingerprint": hashlib.sha256(b"imported codes" + first.labels.tobytes()).hexdigest(),
        "num_samples": len(first),
        "classes": classes_of(args.dataset, first.labels, first.path),
        "views": views,
        "seed": None,
        "image_size": tokenizer.config.image_size,
        "num_tokens": tokenizer.code.num_tokens,
        "code": code_to_dict(tokenizer.code),
        "codebook_size": tokenizer.code.largest_codebook,
        "precision": None,  # the folders do not say with which they were extracted
    }
    if not code_cache.begin(args.out, metadata):
        print(f"{args.out} is already complete: nothing to do")
        return
    with contextlib.closing(CodeCacheWriter(args.out)) as writer:
        _copy(folders, tokenizer.code, writer)
        draw_decoded(tokenizer, writer, first.labels, metadata["classes"])
        writer.finish()
    _report(CodeCache(args.out), folders)


def _open(args: argparse.Namespace, tokenizer: Tokenizer) -> tuple[list[PublishedCodes], list[str]]:
    """The folders and the names of all their views. Raises VFMTokError."""
    size, tokens = tokenizer.config.image_size, tokenizer.code.num_tokens
    if args.flip is not None:
        folder = PublishedCodes(Path(args.flip).expanduser(), size, FLIP, tokens, args.count)
        return [folder], [view.name for view in CENTRE_VIEWS]
    given: dict[float, str] = {}
    for text, folder in args.ten_crop:
        try:
            crop_range = float(text)
        except ValueError:
            raise ConfigError(f"--ten-crop takes a number and a folder, got '{text}'") from None
        if crop_range < 1 or crop_range in given:
            raise ConfigError(f"--ten-crop {text}: ranges are 1 or more, each given once")
        given[crop_range] = folder
    ranges = tuple(sorted(given))
    folders = [PublishedCodes(Path(given[r]).expanduser(), size, TEN_CROP, tokens, args.count) for r in ranges]
    return folders, [view.name for view in ten_crop_views(ranges)]


def _copy(folders: list[PublishedCodes], code: Ids, writer: CodeCacheWriter) -> None:
    """Every block of images into the cache. Raises DataError: a file is odd, or the disk refuses."""
    labels = folders[0].labels
    for rows in tqdm(writer.blocks_to_do(BLOCK), unit=f" x {BLOCK} images"):
        ids = np.concatenate([folder.read(rows.tolist()) for folder in folders], 1)  # (b,V,K)
        for place, segment in zip(code.slices(), code.segments, strict=True):
            part = ids[..., place]
            wrong = np.argwhere((part < 0) | (part >= segment.size))
            if len(wrong):
                n, value = rows[wrong[0][0]], part[tuple(wrong[0])]
                raise DataError(
                    f"image {n} of {folders[0].path} has the id {value}, the tokenizer {segment.size:,} codes: it is "
                    "another tokenizer's"
                )
        writer.write(int(rows[0]), ids, labels[rows], np.zeros(len(rows), bool))


def _report(cache: CodeCache, folders: list[PublishedCodes]) -> None:
    print(f"{cache.path}: {len(cache):,} records x {cache.num_views} views x {cache.num_tokens} tokens")
    for folder in folders:
        if folder.repeated:
            print(f"{folder.path}: {folder.repeated} files at the end repeat the first images and were dropped")
    for counts in cache.code_counts():
        used, perplexity = int((counts > 0).sum()), usage_of_counts(counts)[1]
        print(f"codebook usage {used / len(counts):.1%} ({used} of {len(counts)} codes; perplexity {perplexity:.1f})")
    print(f"contact sheet {cache.path / 'contact_sheet.png'}: pictures of their classes, if the tokenizer is the one")
