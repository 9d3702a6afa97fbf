"""`vfmtok import-codes OUT --ten-crop 1.1 FOLDER`: LlamaGen's code folders as a token cache of ours.

Shapes: N images, b images of a block, V views, K tokens, S side.
"""

import argparse
import contextlib
import hashlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vfmtok.code import Ids, code_to_dict
from vfmtok.commands import flags
from vfmtok.commands.models import open_tokenizer
from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCache, CodeCacheWriter
from vfmtok.data.dataset_folder import open_dataset
from vfmtok.data.order import evenly_spaced
from vfmtok.data.published_codes import FLIP, TEN_CROP, PublishedCodes
from vfmtok.data.views import CENTRE_VIEWS, ten_crop_views
from vfmtok.errors import ConfigError, DataError
from vfmtok.metrics.usage import usage_of_counts
from vfmtok.pictures.rows import draw_rows
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.weights.hashing import tokenizer_hash

BLOCK = 1024  # images read before they are written
SHOWN = 8  # images that are decoded into the contact sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turn code folders of LlamaGen's extraction into a token cache for train_c2i.py --code-path. The folders "
        "do not say what their views are: name them. Two --ten-crop folders, 1.05 and 1.1, become one cache of 20 "
        "views. Files that repeat the first images at the end are dropped. The same command again continues."
    )
    parser.add_argument("out", metavar="OUT", help="the folder of the token cache")
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


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    if (args.flip is None) == (not args.ten_crop):
        raise ConfigError("name what the views are: --flip FOLDER, or --ten-crop RANGE FOLDER")
    tokenizer = open_tokenizer(args, torch.device("cpu"))
    if not isinstance(tokenizer.code, Ids):
        raise ConfigError(f"code folders hold ids, and this tokenizer makes {tokenizer.code}")
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
        "classes": _classes(args.dataset, first),
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
        _draw(tokenizer, writer, first.labels, metadata["classes"])
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


def _classes(dataset: str | None, codes: PublishedCodes) -> list[str]:
    """The names by label; without a dataset the labels themselves. Raises DataError."""
    count = int(codes.labels.max()) + 1
    if dataset is None:
        return [str(label) for label in range(count)]
    classes = open_dataset(dataset).classes
    if classes is None or len(classes) != count:
        has = "no names of classes" if classes is None else f"{len(classes)} classes"
        raise DataError(f"{dataset} has {has}, the labels of {codes.path} are of {count}")
    return classes


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


def _draw(tokenizer: Tokenizer, writer: CodeCacheWriter, labels: np.ndarray, classes: list[str]) -> None:
    """A few entries decoded: whether ids and tokenizer belong together is seen at once. Raises DataError."""
    rows = evenly_spaced(SHOWN, len(labels))
    ids = torch.from_numpy(writer.written_rows()[rows, :1].astype(np.int64))  # (n,1,K)
    size = tokenizer.config.image_size
    pixels = torch.stack([tokenizer.decode_to_uint8(entry, size) for entry in ids]).numpy()  # (n,1,S,S,3)
    sheet = writer.path / "contact_sheet.png"
    try:
        draw_rows(pixels, [classes[label] for label in labels[rows]], f"Decoded: {writer.path.name}").save(sheet)
    except OSError as error:
        raise DataError(f"cannot write {sheet}: {error.strerror or error}; all ids are written, run again") from None


def _report(cache: CodeCache, folders: list[PublishedCodes]) -> None:
    print(f"{cache.path}: {len(cache):,} records x {cache.num_views} views x {cache.num_tokens} tokens")
    for folder in folders:
        if folder.repeated:
            print(f"{folder.path}: {folder.repeated} files at the end repeat the first images and were dropped")
    for counts in cache.code_counts():
        used, perplexity = int((counts > 0).sum()), usage_of_counts(counts)[1]
        print(f"codebook usage {used / len(counts):.1%} ({used} of {len(counts)} codes; perplexity {perplexity:.1f})")
    print(f"contact sheet {cache.path / 'contact_sheet.png'}: pictures of their classes, if the tokenizer is the one")
