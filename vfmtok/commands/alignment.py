"""`vfmtok alignment`: how alike the features of tokenizers, foundation models and generators are."""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.commands import flags
from vfmtok.data.dataset_folder import open_split
from vfmtok.data.records import RecordDataset
from vfmtok.encoders.config import EncoderConfig
from vfmtok.errors import ConfigError, DataError
from vfmtok.evaluation.alignment import (
    Source,
    aligned,
    encoder_source,
    generator_source,
    read_features,
    tokenizer_source,
    value_of,
)
from vfmtok.evaluation.alignment_conditions import CONDITIONS, described
from vfmtok.files import write_json
from vfmtok.metrics.neighbour_alignment import NEIGHBOURS, check_count
from vfmtok.pictures.alignment import draw_alignment, save_figure
from vfmtok.pretrained.loading import load_generator, load_tokenizer, read_weights
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.weights.hashing import tokenizer_hash

IMAGES = 10_000  # published


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "CKNNA: whether images that are neighbours in the features of one model are neighbours in another's; on images "
        "as they are, turned and shrunk, and with noise. SE-CKNNA is the mean over the disturbed ones. Of a tokenizer "
        "its latents or code vectors are read, its region tokens and its frozen encoder; of foundation models the last "
        "level; of generators a block; each as the mean over positions. One JSON file with every value's condition, n "
        "and k, and one picture: bars by condition, and a matrix of models."
    )
    parser.add_argument("--data", required=True, help="the folder of `vfmtok prepare`, whose validation split is used")
    parser.add_argument("--split", default="val", help="another split (default val)")
    parser.add_argument(
        "--tokenizer", action="append", nargs="+", default=[], metavar="[NAME=]PATH",
        help="a run, a checkpoint, a saved model, a published name, or a file and its configuration; again for another",
    )  # fmt: skip
    parser.add_argument(
        "--encoder", action="append", default=[], metavar="[NAME=]ENCODER[@SIZE]",
        help="a foundation model, and the px it sees (default 224); again for another",
    )  # fmt: skip
    parser.add_argument(
        "--generator", action="append", default=[], metavar="[NAME=]PATH",
        help="a generator of one of the tokenizers; again for another",
    )  # fmt: skip
    parser.add_argument(
        "--blocks", type=flags.positive, nargs="+", metavar="N", help="of generators, from 1 (default: the middle one)"
    )
    parser.add_argument(*flags.names("--latent-stats"), metavar="FILE", help="of generators whose weights bring none")
    parser.add_argument("--encoder-weights", default="auto", help="of foundation models: auto (default), hub, package")
    parser.add_argument("--reference", metavar="NAME", help="the model of the bars (default: the first encoder)")
    parser.add_argument(
        "--images", type=flags.positive, default=IMAGES, metavar="N", help=f"at most (default {IMAGES})"
    )
    parser.add_argument("--neighbours", type=flags.positive, default=NEIGHBOURS, metavar="K", help="default 10")
    workers = min(4, os.cpu_count() or 1)
    parser.add_argument("--num-workers", type=flags.count, default=workers, metavar="N", help="loading processes")
    parser.add_argument("--out", default="alignment", metavar="FOLDER", help="for alignment.json and alignment.png")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    records = open_split(Path(args.data).expanduser(), args.split)
    sources = _open_sources(args, distributed.start().device)
    names = [_name(source, what) for source in sources for what in source.what]
    if len(names) < 2:
        raise ConfigError(f"alignment is of two models or more, here is {', '.join(names) or 'none'}: name others")
    if args.reference not in (None, *names):
        raise ConfigError(f"--reference: there is no model '{args.reference}'; there are {', '.join(names)}")
    check_count(min(args.images, len(records)), args.neighbours)
    out = Path(args.out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}") from None
    features, models = _read(sources, records, args)
    encoders = (name for name, facts in models.items() if facts["is_encoder"])
    reference = args.reference or next(encoders, names[0])
    entries = aligned(features, args.neighbours)
    count = len(features[reference][CONDITIONS[0]])
    images = f"{count:,} images of {'/'.join(records.path.parts[-2:])}"
    tree = {
        "images": images,
        "n": count,
        "k": args.neighbours,
        "conditions": {condition: described(condition) for condition in CONDITIONS},
        "models": models,
        "reference": reference,
        "values": entries,
    }
    write_json(out / "alignment.json", tree)
    bars = {
        name: {condition: value_of(entries, name, reference, "cknna", condition) for condition in CONDITIONS}
        for name in names
        if name != reference
    }
    matrix = [[None if one == other else value_of(entries, one, other, "se_cknna") for other in names] for one in names]
    about = f"CKNNA of {images}, k = {args.neighbours}"
    save_figure(draw_alignment(bars, reference, matrix, names, about), out / "alignment.png")
    print("\n".join(_lines(about, entries, names, reference)))
    print(f"{out / 'alignment.json'} and alignment.png")


# ---- models --------------------------------------------------------------------------------


def _open_sources(args: argparse.Namespace, device: torch.device) -> list[Source]:
    """Of the flags. Raises VFMTokError."""
    tokenizers: dict[str, Tokenizer] = {}
    for words in args.tokenizer:
        if len(words) > 2:
            raise ConfigError(f"--tokenizer takes a path and perhaps its configuration, got {' '.join(words)}")
        name, path = _named(words[0])
        config = words[1] if len(words) == 2 else None
        tokenizers[_new(name, tokenizers)] = load_tokenizer(path, config).to(device)
    sources = [tokenizer_source(name, tokenizer) for name, tokenizer in tokenizers.items()]
    for text in args.encoder:
        name, path = _named(text)
        encoder, _, size = path.partition("@")
        if size and not size.isdecimal():
            raise ConfigError(f"--encoder {text}: the size behind @ is a number of px")
        config = EncoderConfig(name=encoder, image_size=int(size or 224), weights=args.encoder_weights)
        source = encoder_source(_new(name, [source.name for source in sources]), config, device)
        sources.append(source)
    for text in args.generator:
        name, path = _named(text)
        tokenizer = _tokenizer_of(path, tokenizers)
        generator = load_generator(path, tokenizer, None, {}, statistics=args.latent_stats)[0].to(device)
        depth = len(list(getattr(generator, "layers", ())))
        blocks = args.blocks or [max(1, depth // 2)]
        name = _new(name, [source.name for source in sources])
        sources.append(generator_source(name, tokenizer, generator, blocks))
    return sources


def _named(text: str) -> tuple[str, str]:
    """NAME=PATH, or a path, whose last part is the name then."""
    name, equals, path = text.partition("=")
    return (name, path) if equals else (Path(text.rstrip("/")).name, text)


def _new(name: str, taken: Any) -> str:
    if name in taken:
        raise ConfigError(f"two models are called '{name}': give one another name (NAME=...)")
    return name


def _tokenizer_of(path: str, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    """The one that a generator learned from; where it does not say, the only one. Raises VFMTokError."""
    digest = read_weights(path, "generator").tokenizer_hash
    fitting = [tokenizer for tokenizer in tokenizers.values() if digest in (None, tokenizer_hash(tokenizer))]
    if len(fitting) != 1:
        found = "none of the tokenizers is" if not fitting else "several tokenizers may be"
        raise ConfigError(f"--generator {path}: {found} the one it learned from (--tokenizer)")
    return fitting[0]


def _read(
    sources: list[Source], records: RecordDataset, args: argparse.Namespace
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Any]]]:
    """Model -> condition -> features (n,D); and model -> what it is, for the file."""
    features: dict[str, dict[str, Tensor]] = {}
    models: dict[str, dict[str, Any]] = {}
    for source in sources:
        for (what, condition), values in read_features(source, records, args.images, args.num_workers).items():
            name = _name(source, what)
            features.setdefault(name, {})[condition] = values
            shrunk = "as it is" if source.sees_smaller else "enlarged again"
            models[name] = {
                "features": f"the mean over positions of {source.what[what]}",
                "width": values.shape[1],
                "image_size": source.size,
                "a_shrunk_image_is_seen": shrunk,
                "is_encoder": what == "encoder",
            }
    return features, models


def _name(source: Source, what: str) -> str:
    return source.name if len(source.what) == 1 else f"{source.name}: {what}"


def _lines(about: str, entries: list[dict[str, Any]], names: list[str], reference: str) -> list[str]:
    """The values with the reference, for people."""
    width = max(map(len, names))
    lines = [f"{about}, with {reference}", f"  {'':<{width}}  " + "  ".join(f"{c:>12}" for c in (*CONDITIONS, "SE"))]
    for name in names:
        if name != reference:
            values = [value_of(entries, name, reference, "cknna", condition) for condition in CONDITIONS]
            values.append(value_of(entries, name, reference, "se_cknna"))
            lines.append(f"  {name:<{width}}  " + "  ".join(f"{value:>12.3f}" for value in values))
    return lines
