"""`vfmtok codes DATASET OUT`: run a tokenizer over a dataset once and keep the ids.

Under torchrun the dataset is shared among the processes. Run again after an interruption, it continues where
it was. It is finished only when 32 entries have been decoded into OUT/contact_sheet.png and measured.

Shapes: B images of a block, C crops of an image, V views (crops and their mirror images), S side, K tokens.
"""

import argparse
import contextlib
import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vfmtok import distributed
from vfmtok.code import Latents, code_to_dict
from vfmtok.commands import flags
from vfmtok.commands.models import open_tokenizer
from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCache, CodeCacheWriter
from vfmtok.data.dataset_folder import open_dataset
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import BlockOrder, evenly_spaced
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import TEN_CROP_RANGES, to_unit_range
from vfmtok.data.views import VIEWS, View
from vfmtok.errors import ConfigError, DataError, SharedError
from vfmtok.metrics.pixels import psnr
from vfmtok.metrics.usage import count_codes, usage_of_counts
from vfmtok.pictures.contact_sheet import draw_pairs
from vfmtok.weights.hashing import tokenizer_hash

CHECKED_ENTRIES = 32  # decoded into the contact sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compute the token ids of a dataset once and keep them in one array. Run the same command again to continue "
        "after an interruption; start it with torchrun to share the work among GPUs."
    )
    parser.add_argument("dataset", metavar="DATASET", help="an LMDB folder, such as prepare's OUT/train_lmdb")
    parser.add_argument("out", metavar="OUT", help="the folder of the token cache")
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
    parser.add_argument("--num-random-views", type=int, metavar="R", help="for --views random (default 10)")
    parser.add_argument(*flags.names("--global-seed"), type=int, help="of --views random (default 0)")
    parser.add_argument(
        "--rank",
        type=int,
        default=1,
        metavar="R",
        help="keep the codes of the R nearest entries of the codebook, every one a sequence of its own to train on "
        "(RAR was trained with 2; default 1: the nearest)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images per pass and process (default 32)")
    workers = min(4, os.cpu_count() or 1)
    parser.add_argument(
        "--num-workers", type=int, default=workers, help="loading processes per process (default: the cores, at most 4)"
    )
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 on a GPU, fp32 on a CPU")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    if args.views != "random" and (args.num_random_views is not None or args.global_seed is not None):
        raise DataError("--num-random-views and --global-seed belong to --views random")
    args.num_random_views = 10 if args.num_random_views is None else args.num_random_views
    args.global_seed = args.global_seed or 0
    if min(args.batch_size, args.num_random_views, args.rank) < 1 or args.num_workers < 0:
        raise DataError("--batch-size, --num-random-views and --rank must be positive, --num-workers not negative")
    with distributed.group() as world:
        _extract(args, world)


# --------------------------------------------------------------------------------------
# The work
# --------------------------------------------------------------------------------------


def _extract(args: argparse.Namespace, world: distributed.World) -> None:
    with distributed.together():
        records = open_dataset(args.dataset)
        tokenizer = open_tokenizer(args, world.device)
        if isinstance(tokenizer.code, Latents):
            raise ConfigError(f"a token cache keeps ids, and this tokenizer makes {tokenizer.code}: train on images")
        if args.rank > 1:
            _check_ranks(tokenizer, args.rank)
    transform, views = VIEWS[args.views](tokenizer.config.image_size, args.num_random_views, args.global_seed)
    precision = args.precision or ("bf16" if world.device.type == "cuda" else "fp32")
    fingerprint = tokenizer_hash(tokenizer)
    if len(set(distributed.gather(fingerprint))) > 1:
        raise SharedError("the processes built different tokenizers: set encoder.weights, random weights differ")
    metadata = {
        "tokenizer_hash": fingerprint,
        "dataset": str(args.dataset),
        "dataset_fingerprint": records.fingerprint,
        "num_samples": len(records),
        "classes": records.classes,
        "views": [name for view in views for name in _names(view, args.rank)],
        "seed": args.global_seed if args.views == "random" else None,
        "image_size": tokenizer.config.image_size,
        "num_tokens": tokenizer.code.num_tokens,
        "code": code_to_dict(tokenizer.code),
        "codebook_size": tokenizer.code.largest_codebook,
        "precision": precision,
        **({"ranks": args.rank} if args.rank > 1 else {}),
    }
    unfinished = None
    with distributed.together():
        if world.is_main:
            unfinished = code_cache.begin(args.out, metadata)
    if not distributed.gather(unfinished)[0]:
        distributed.print_main(f"{args.out} is already complete: nothing to do")
        return
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
            _encode_blocks(tokenizer, loader, share, views, args.rank, writer, world, precision, bar)
        distributed.barrier()
        with distributed.together():
            if world.is_main:
                writer.check_replaced()
                _finish(tokenizer, records, transform, views, writer, world.device)


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
    ranks: int,
    writer: CodeCacheWriter,
    world: distributed.World,
    precision: str,
    bar: tqdm,
) -> None:
    """Fill this process's blocks of the cache, one by one."""
    for rows, batch in zip(blocks, loader, strict=True):
        images = batch.images if batch.images.ndim == 5 else batch.images[:, None]  # (B,C,3,S,S)
        ids = encode_views(tokenizer, images.to(world.device, non_blocking=True), views, precision, ranks)
        replaced = batch.indices.numpy() != rows
        writer.write(int(rows[0]), ids.cpu().numpy(), batch.labels.numpy(), replaced)
        if replaced.any():
            writer.check_replaced()
        bar.update(min(len(rows) * world.size, bar.total - bar.n))  # the others are about as far


@torch.inference_mode()
def encode_views(tokenizer: nn.Module, crops: Tensor, views: list[View], precision: str, ranks: int = 1) -> Tensor:
    """uint8 crops (B,C,3,S,S) -> ids (B,V*R,K) int64, one view of all images at a time, the nearest codes first."""
    ids = []
    for view in views:
        images = to_unit_range(crops[:, view.crop])  # (B,3,S,S)
        images = images.flip(-1) if view.mirrored else images
        with torch.autocast(crops.device.type, torch.bfloat16, enabled=precision == "bf16"):
            ids.append(tokenizer.encode(images).ids[:, None] if ranks == 1 else tokenizer.ranked_ids(images, ranks))
    return torch.cat(ids, 1)  # V x (B,R,K) -> (B,V*R,K)


# --------------------------------------------------------------------------------------
# The check that ends it
# --------------------------------------------------------------------------------------


def _finish(
    tokenizer: nn.Module,
    records: RecordDataset,
    transform: Callable,
    views: list[View],
    writer: CodeCacheWriter,
    device: torch.device,
) -> None:
    """Decode entries, draw and measure them, count the codes; then, and only then, the cache is complete."""
    progress, ids = writer.progress(), writer.read_only_ids()
    good = np.flatnonzero(progress == code_cache.DONE)
    if not len(good):
        raise DataError(f"{writer.path}: no entry to decode")
    rows = good[evenly_spaced(CHECKED_ENTRIES, len(good))]
    size = tokenizer.config.image_size
    originals, decoded, labels = [], [], []
    for row in rows.tolist():
        record = records[row]
        crops = transform(record.image, 0, row)
        originals.append((crops if crops.ndim == 3 else crops[0]).permute(1, 2, 0).numpy())  # (S,S,3), view 0
        entry = torch.from_numpy(ids[row, :1].astype(np.int64)).to(device)  # (1,K)
        decoded.append(tokenizer.decode_to_uint8(entry, size)[0].cpu().numpy())
        labels.append(record.label)
    originals, decoded = np.stack(originals), np.stack(decoded)  # (B,S,S,3)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255 for images in (originals, decoded))
    values = psnr(*pixels).numpy()
    protocol = (
        f"mean over {len(rows)} entries of view '{views[0].name}' of the PSNR of uint8 RGB at {size} px, peak 255, "
        "decoded in float32"
    )
    names = [records.class_name(label) for label in labels]
    captions = [(name, f"{value:.1f} dB") for name, value in zip(names, values, strict=True)]
    title = (
        f"Original and decoded, {len(rows)} of {len(records):,} entries: mean PSNR {values.mean():.2f} dB at {size} px"
    )
    sheet = writer.path / "contact_sheet.png"
    try:
        draw_pairs(originals, decoded, captions, title).save(sheet)
    except OSError as error:
        raise DataError(f"cannot write {sheet}: {error.strerror or error}; all ids are written, run again") from None
    code = tokenizer.code
    counted = zip(code.slices(), code.segments, strict=True)
    usages = [_usage_of(count_codes(ids[..., part], segment.size)) for part, segment in counted]
    writer.finish(
        round_trip={"psnr_db": float(values.mean()), "entries": rows.tolist(), "protocol": protocol},
        codebook_usage=min(usages, key=lambda usage: usage["used"] / usage["size"]),
        **({"codebook_usages": usages} if len(usages) > 1 else {}),  # of each segment; above, of the least used
    )
    _report(CodeCache(writer.path))


def _usage_of(counts: Tensor) -> dict[str, float]:
    return {"used": int((counts > 0).sum()), "size": len(counts), "perplexity": usage_of_counts(counts)[1]}


def _report(cache: CodeCache) -> None:
    found = cache.metadata
    check = found["round_trip"]
    views, ranks = cache.num_views // cache.num_ranks, f" x {cache.num_ranks} ranks" if cache.num_ranks > 1 else ""
    print(f"{cache.path}: {len(cache):,} records x {views} views{ranks} x {cache.num_tokens} tokens")
    if found["replaced_rows"]:
        print(
            f"bad records, replaced by the next good one: {len(found['replaced_rows'])} (replaced_rows in cache.json)"
        )
    print(f"round-trip PSNR {check['psnr_db']:.2f} dB ({check['protocol']})")
    usages = found.get("codebook_usages", [found["codebook_usage"]])
    for usage, segment in zip(usages, cache.code.segments, strict=True):
        which = f" of the {segment.count} tokens" if len(usages) > 1 else ""
        print(
            f"codebook usage{which} {usage['used'] / usage['size']:.1%} ({usage['used']} of {usage['size']} codes "
            f"occur, counted over all records and views; perplexity {usage['perplexity']:.1f})"
        )
    print(f"contact sheet {cache.path / 'contact_sheet.png'}", flush=True)
