"""`vfmtok codes DATASET OUT`: run a tokenizer over a dataset once and keep the ids, or the latents.

Under torchrun the dataset is shared among the processes. Run again after an interruption, it continues where
it was. It is finished only when 32 entries have been decoded into OUT/contact_sheet.png and measured.

Shapes: B images of a block, P crops of an image, V views (crops and their mirror images), R ranks, S side; of a code
K tokens, or M times (C,h,w): a latent, or mean and standard deviation.
"""

import argparse
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vfmtok import distributed
from vfmtok.code import Code, Ids, Latents, code_to_dict
from vfmtok.commands import flags
from vfmtok.commands.cache_check import change_statistics, finish
from vfmtok.commands.models import open_tokenizer
from vfmtok.data import code_cache
from vfmtok.data.cache_layout import LATENT_DTYPES
from vfmtok.data.code_cache import CodeCacheWriter
from vfmtok.data.dataset_folder import open_dataset
from vfmtok.data.latent_cache import write_statistics
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import BlockOrder
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import TEN_CROP_RANGES, to_unit_range
from vfmtok.data.views import RANDOM_VIEWS, VIEWS, View
from vfmtok.errors import ConfigError, DataError, SharedError
from vfmtok.generators.counter_random import Draws
from vfmtok.tokenizers.contract import code_of
from vfmtok.weights.hashing import tokenizer_hash


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compute the codes of a dataset once, ids or latents, and keep them in one array. Run the same command again "
        "to continue after an interruption; start it with torchrun to share the work among GPUs."
    )
    parser.add_argument("dataset", metavar="DATASET", help="an LMDB folder, such as prepare's OUT/train_lmdb")
    parser.add_argument("out", metavar="OUT", help="the folder of the cache")
    flags.add_tokenizer(parser)
    flags.add_set(parser, "tokenizer")
    parser.add_argument(
        "--views",
        choices=tuple(VIEWS),
        default="flip",
        help="center: the evaluation crop; flip: it and its mirror image (default); shift: it, its eight shifts by one "
        "pixel and their mirror images, 18 views, for small images; ten-crop: five crops and their "
        f"mirror images of the image enlarged by {' and '.join(map(str, TEN_CROP_RANGES))}, 20 views; "
        "random: training crops",
    )
    text = f"for --views random (default {RANDOM_VIEWS})"
    parser.add_argument("--num-random-views", type=int, metavar="R", help=text)
    parser.add_argument(
        *flags.names("--global-seed"), type=int, help="of --views random and --posterior sample (default 0)"
    )
    parser.add_argument(
        "--rank",
        type=int,
        default=1,
        metavar="R",
        help="keep the codes of the R nearest entries of the codebook, every one a sequence of its own to train on "
        "(RAR was trained with 2; default 1: the nearest)",
    )
    group = parser.add_argument_group("latents of a continuous tokenizer")
    group.add_argument(
        "--posterior",
        choices=("sample", "moments", "mean"),
        help="of a tokenizer that encodes to a distribution (a VAE): a latent drawn from it once (default); its mean "
        "and standard deviation, from which every step of a training draws, in twice the space; or its mean",
    )
    group.add_argument("--latent-dtype", choices=LATENT_DTYPES, help="default float16, half the space")
    group.add_argument(
        "--stats-per",
        choices=("channel", "position"),
        help="the statistics that a generator normalises by: of every channel (default), or of every channel and place",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images per pass and process (default 32)")
    workers = min(4, os.cpu_count() or 1)
    parser.add_argument(
        "--num-workers", type=int, default=workers, help="loading processes per process (default: the cores, at most 4)"
    )
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 on a GPU, fp32 on a CPU")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    if args.views != "random" and args.num_random_views is not None:
        raise DataError("--num-random-views belongs to --views random")
    args.num_random_views = RANDOM_VIEWS if args.num_random_views is None else args.num_random_views
    if min(args.batch_size, args.num_random_views, args.rank) < 1 or args.num_workers < 0:
        raise DataError("--batch-size, --num-random-views and --rank must be positive, --num-workers not negative")
    with distributed.group() as world:
        _extract(args, world)


@dataclass(frozen=True)
class Kept:
    """What is kept of every view.

    Attributes:
        ranks: of ids, those of so many nearest entries of the codebook.
        posterior: of a tokenizer that encodes to one: "sample", "moments" or "mean"; else None.
        seed: of samples.
    """

    ranks: int = 1
    posterior: str | None = None
    seed: int = 0


def _extract(args: argparse.Namespace, world: distributed.World) -> None:
    with distributed.together():
        records = open_dataset(args.dataset)
        tokenizer = open_tokenizer(args, world.device)
        kept = _kept(args, tokenizer)
    seed = args.global_seed or 0
    transform, views = VIEWS[args.views](tokenizer.config.image_size, args.num_random_views, seed)
    precision = args.precision or ("bf16" if world.device.type == "cuda" else "fp32")
    fingerprint = tokenizer_hash(tokenizer)
    if len(set(distributed.gather(fingerprint))) > 1:
        raise SharedError("the processes built different tokenizers: set encoder.weights, random weights differ")
    chance = args.views == "random" or kept.posterior == "sample"
    metadata = {
        "tokenizer_hash": fingerprint,
        "dataset": str(args.dataset),
        **_facts_of_records(records),
        "views": [name for view in views for name in _names(view, kept.ranks)],
        "seed": seed if chance else None,
        "image_size": tokenizer.config.image_size,
        **_facts_of_codes(tokenizer.code, kept, args.latent_dtype),
        "precision": precision,
    }
    unfinished = None
    with distributed.together():
        if world.is_main:
            unfinished = code_cache.begin(args.out, metadata)
    if not distributed.gather(unfinished)[0]:
        if args.stats_per is not None:
            change_statistics(args.out, args.stats_per)
        distributed.print_main(f"{args.out} is already complete: nothing to do")
        return
    _fill(args, world, tokenizer, records, transform, views, kept, precision)


def _fill(
    args: argparse.Namespace,
    world: distributed.World,
    tokenizer: nn.Module,
    records: RecordDataset,
    transform: Callable,
    views: list[View],
    kept: Kept,
    precision: str,
) -> None:
    """What is to do of a cache that was begun, by all processes; then the check that ends it. Raises VFMTokError."""
    with contextlib.ExitStack() as stack:
        with distributed.together():  # all have read the progress before anybody changes it
            writer = stack.enter_context(contextlib.closing(CodeCacheWriter(args.out)))
            writer.check_replaced()
            blocks = writer.blocks_to_do(args.batch_size)
        share = blocks[world.rank :: world.size]
        workers = args.num_workers
        loader = ImageLoader(records, transform, BlockOrder(share), num_workers=workers, max_bad_fraction=None)
        with (
            contextlib.closing(loader),
            tqdm(total=sum(map(len, blocks)), unit="image", disable=not world.is_main) as bar,
        ):
            _encode_blocks(tokenizer, loader, share, views, kept, writer, world, precision, bar)
        distributed.barrier()
        with distributed.together():
            writer.check_replaced()
        facts = {}
        if isinstance(tokenizer.code, Latents):
            rows = writer.written_rows()
            facts["statistics"] = write_statistics(writer.path, rows, args.stats_per or "channel")
        with distributed.together():
            if world.is_main:
                finish(tokenizer, records, transform, views, writer, world.device, facts)


def _kept(args: argparse.Namespace, tokenizer: nn.Module) -> Kept:
    """Raises ConfigError where flags do not go with the tokenizer, before anything is written."""
    given = [name for name in ("posterior", "latent_dtype", "stats_per") if getattr(args, name) is not None]
    if isinstance(tokenizer.code, Ids) and given:
        flag = given[0].replace("_", "-")
        raise ConfigError(f"--{flag} belongs to continuous tokenizers, and this one makes {tokenizer.code}")
    if args.rank > 1:
        _check_ranks(tokenizer, args.rank)
    draws = getattr(tokenizer, "encode_draws", False)
    if args.posterior in ("sample", "moments") and not draws:
        raise ConfigError(
            f"--posterior {args.posterior}: a {tokenizer.config.kind} tokenizer has no posterior, an image has one "
            "latent"
        )
    posterior = (args.posterior or "sample") if draws else None
    if args.global_seed is not None and args.views != "random" and posterior != "sample":
        raise DataError("--global-seed belongs to --views random, and to --posterior sample")
    return Kept(args.rank, posterior, (args.global_seed or 0) % 2**64)


def _facts_of_records(records: RecordDataset) -> dict[str, Any]:
    """What cache.json says of them."""
    return {
        "dataset_fingerprint": records.fingerprint,
        "num_samples": len(records),
        "classes": records.classes,
    }


def _facts_of_codes(code: Code, kept: Kept, latent_dtype: str | None) -> dict[str, Any]:
    """What cache.json says of them."""
    facts = {"code": code_to_dict(code)}
    if isinstance(code, Latents):
        return {**facts, "posterior": kept.posterior, "latent_dtype": latent_dtype or LATENT_DTYPES[0]}
    ranks = {"ranks": kept.ranks} if kept.ranks > 1 else {}
    return {**facts, "num_tokens": code.num_tokens, "codebook_size": code.largest_codebook, **ranks}


def _names(view: View, ranks: int) -> list[str]:
    """Of the view's codes; they tell a cache with other ranks from this one."""
    return [view.name, *(f"{view.name}, rank {rank}" for rank in range(2, ranks + 1))]


@torch.inference_mode()
def _check_ranks(tokenizer: nn.Module, ranks: int) -> None:
    """Raise ConfigError if the tokenizer has no second nearest codes, before anything is written."""
    if not hasattr(tokenizer, "ranked_ids"):
        raise ConfigError(f"--rank: a {tokenizer.config.kind} tokenizer does not rank its codes")
    side = tokenizer.config.image_size
    tokenizer.ranked_ids(torch.zeros(1, 3, side, side, device=tokenizer.device), ranks)


def _encode_blocks(
    tokenizer: nn.Module,
    loader: ImageLoader,
    blocks: list[np.ndarray],
    views: list[View],
    kept: Kept,
    writer: CodeCacheWriter,
    world: distributed.World,
    precision: str,
    bar: tqdm,
) -> None:
    """Fill this process's blocks of the cache, one by one."""
    for rows, batch in zip(blocks, loader, strict=True):
        images = batch.images if batch.images.ndim == 5 else batch.images[:, None]  # (B,P,3,S,S)
        images = images.to(world.device, non_blocking=True)
        codes = encode_views(tokenizer, images, views, precision, kept, torch.from_numpy(rows))
        replaced = batch.indices.numpy() != rows
        writer.write(int(rows[0]), codes.cpu().numpy(), batch.labels.numpy(), replaced)
        if replaced.any():
            writer.check_replaced()
        bar.update(min(len(rows) * world.size, bar.total - bar.n))  # the others are about as far


@torch.inference_mode()
def encode_views(
    tokenizer: nn.Module,
    crops: Tensor,
    views: list[View],
    precision: str,
    kept: Kept = Kept(),
    rows: Tensor | None = None,
) -> Tensor:
    """uint8 crops (B,P,3,S,S) of records ``rows`` (B,) -> what is kept of each, one view of all images at a time:
    ids (B,V*R,K) int64, the nearest codes first, or latents (B,V,M,C,h,w) float32.

    ``rows`` may be left out where nothing is drawn.
    """
    codes = []
    for number, view in enumerate(views):
        images = to_unit_range(crops[:, view.crop])  # (B,3,S,S)
        images = images.flip(-1) if view.mirrored else images
        with torch.autocast(crops.device.type, torch.bfloat16, enabled=precision == "bf16"):
            if isinstance(tokenizer.code, Latents):
                draws = None
                if kept.posterior == "sample":  # drawn by (seed, record, view), whoever computes it in which company
                    draws = Draws(kept.seed, rows.to(images.device) * len(views) + number)
                codes.append(_latents(tokenizer, images, kept.posterior, draws)[:, None].float())  # (B,1,M,C,h,w)
            elif kept.ranks > 1:
                codes.append(tokenizer.ranked_ids(images, kept.ranks))  # (B,R,K)
            else:
                codes.append(code_of(tokenizer.encode(images), tokenizer.code)[:, None])  # (B,1,K)
    return torch.cat(codes, 1)


def _latents(tokenizer: nn.Module, images: Tensor, posterior: str | None, draws: Draws | None) -> Tensor:
    """images (B,3,S,S) in [-1,1] -> (B,M,C,h,w)."""
    if draws is not None:
        return tokenizer.encode(images, draws=draws).latents[:, None]
    encoding = tokenizer.encode(images)
    if posterior == "moments":
        return torch.stack([encoding.posterior.mean, encoding.posterior.std], 1)
    return encoding.latents[:, None]
