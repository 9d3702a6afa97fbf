"""`vfmtok agreement`: do generated images look like their classes, and are they new?"""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vfmtok import distributed
from vfmtok.code import check_fits
from vfmtok.commands import flags
from vfmtok.commands.models import add_models, open_models
from vfmtok.commands.sampling_flags import add_sampling, sampling_of
from vfmtok.data.code_cache import Cache, CodeCache, check_tokenizer
from vfmtok.data.dataset_folder import open_split
from vfmtok.data.latent_cache import LatentCache, open_cache
from vfmtok.data.order import evenly_spaced
from vfmtok.data.records import RecordDataset
from vfmtok.encoders.config import EncoderConfig
from vfmtok.encoders.vfm import Encoder
from vfmtok.errors import ConfigError, DataError
from vfmtok.evaluation.agreement import (
    ClassProbe,
    largest_overlap,
    measure_real,
    open_probe_encoder,
    positional_unigram,
    read_batches,
)
from vfmtok.evaluation.encoder_distance import HeldOutDistances, open_encoder
from vfmtok.evaluation.latent_agreement import largest_similarity, positional_latents
from vfmtok.evaluation.results import Measured, Number, as_lines, as_tree
from vfmtok.files import write_json
from vfmtok.generators.contract import at_scale, changed
from vfmtok.generators.drawing import draw_codes
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.weights.hashing import tokenizer_hash


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Generate images of every class and let a linear probe on the frozen encoder, trained on the real training "
        "images, say which class they show. Prints the share that agrees, beside what real images reach and beside "
        "a floor (ids or latents drawn position by position from images of the class), and the largest overlap of ids, "
        "or similarity of latents, with a training image. What the bounds leave out is chosen at equal distances, and "
        "said."
    )
    add_models(parser)
    parser.add_argument("--data", required=True, help="the folder of `vfmtok prepare`, with a validation split")
    parser.add_argument("--code-path", required=True, metavar="CACHE", help="the cache of its training images")
    parser.add_argument(
        "--per-class", type=flags.positive, default=60, metavar="N", help="generated images (default 60)"
    )
    parser.add_argument("--cfg-scales", type=float, nargs="+", default=[1.0, 2.0], metavar="S", help="default 1 2")
    add_sampling(parser, leave_out=("--cfg-scale",))
    parser.add_argument(
        "--levels", type=int, nargs="+", metavar="L", help="of the encoder (default: all of a pyramid, else those read)"
    )
    for flag, kind, text in (
        ("--encoder", str, "the probe's encoder (default: the tokenizer's), to compare tokenizers that have others"),
        ("--encoder-size", flags.positive, "px it sees (default: the tokenizer's image size)"),
        ("--encoder-weights", str, "auto (default), hub, package, or a file"),
    ):
        parser.add_argument(flag, type=kind, metavar="N" if kind is not str else "NAME", help=text)
    text = "also fd@ENCODER to the held-out images: of training images (its floor), and of generated ones"
    flags.add_measuring_encoder(parser, "--fd", text)
    parser.add_argument("--batch-size", type=flags.positive, default=60, metavar="N", help="images generated at a time")
    parser.add_argument("--seed", "--global-seed", type=int, default=0)
    for name, count, text in (
        ("--probe-images", 50_000, "training images that the probe learns from"),
        ("--real-images", 10_000, "held-out images that are measured"),
        ("--overlap-images", 10_000, "training images, with all their views, that codes are compared with"),
        ("--overlap-samples", 1_000, "images of each kind whose codes are compared"),
    ):
        parser.add_argument(name, type=flags.positive, default=count, metavar="N", help=f"{text} (at most; {count})")
    workers = min(4, os.cpu_count() or 1)
    parser.add_argument("--num-workers", type=flags.count, default=workers, metavar="N", help="loading processes")
    parser.add_argument("--out", default="agreement", metavar="FOLDER", help="for results.json (default agreement)")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    world = distributed.World(0, 1, distributed.start().device)
    tokenizer, generator, _ = open_models(args, world.device)
    train = open_cache(Path(args.code_path).expanduser())
    check_fits(generator.code, train.code, f"the {train}")
    check_tokenizer(train, tokenizer_hash(tokenizer))
    splits = {split: open_split(Path(args.data).expanduser(), split) for split in ("train", "val")}
    if splits["train"].fingerprint == splits["val"].fingerprint:
        raise DataError(f"{args.data} needs a training and a validation split: the probe learns from one")
    num_classes = generator.num_classes
    if num_classes < 2:
        raise DataError("there is one class: nothing for images to agree with")
    chosen = flags.measuring_encoder(args, "--fd")
    judge = open_encoder(*chosen).to(world.device) if chosen is not None else None
    settings = sampling_of(args, generator)
    guided = [at_scale(settings, scale) for scale in args.cfg_scales]  # impossible ones end it here

    encoder = open_probe_encoder(tokenizer, args.levels, _other_encoder(args, tokenizer)).to(world.device)
    probe = ClassProbe(encoder, tokenizer, splits["train"], num_classes, args.probe_images, args.num_workers)
    about = f"linear probe on levels {list(encoder.levels)} of {encoder.config.name}, trained on {probe.count:,} images"
    about += _of(len(splits["train"]), probe.count)
    overlap = _Overlap(train, args, world.device)
    distances = _distances(judge, probe, splits, args) if judge is not None else None
    real = measure_real(probe, read_batches(splits["val"], probe.size, args.real_images, args.num_workers))
    some = _of(len(splits["val"]), real.count)
    held_out = f"{about}; held-out images{some}" if some else about
    numbers = [
        _number("agreement of real held-out images", real.agreement, real.count, held_out),
        _number(
            f"agreement of held-out images, decoded from {overlap.codes}", real.decoded_agreement, real.count, held_out
        ),
    ]
    numbers += overlap.numbers(real.codes, {"mean": f"mean {overlap.name} of held-out images"})
    labels = torch.arange(num_classes).repeat_interleave(args.per_class)  # (N,)
    floor = probe.agreement_of_codes(overlap.floor(train, labels, args.seed), labels)
    floored = f"{overlap.codes} drawn position by position at the frequencies of the class; {about}"
    numbers.append(_number("agreement of the floor", floor, len(labels), floored))
    for sampling in guided:
        codes = draw_codes(generator, labels, args.batch_size, world, **asdict(sampling), seed=args.seed)
        name = sampling.guidance
        numbers.append(_number(f"agreement, {name}", probe.agreement_of_codes(codes, labels), len(labels), about))
        names = {which: f"{which} {overlap.name}, {name}" for which in ("largest", "mean")}
        numbers += overlap.numbers(codes, names)
        if distances is not None:
            distances.add(name, (probe.decode(some) for some in codes.split(args.batch_size)))
    notes = [
        f"{args.per_class} images a class, {', '.join(changed(settings)) or 'settings by default'}, seed {args.seed}"
    ]
    far = distances.found if distances is not None else Measured()
    results = {"numbers": as_tree(numbers + far.numbers), "warnings": far.warnings, "notes": notes}
    file = Path(args.out).expanduser() / "results.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror}") from None
    write_json(file, results)
    print("\n".join(as_lines(f"{args.gpt}: {file}", results)))


def _distances(
    encoder: Encoder, probe: ClassProbe, splits: dict[str, RecordDataset], args: argparse.Namespace
) -> HeldOutDistances:
    """To the held-out images; first those of the training images and of decoded ones, which are bounds."""
    held_out = (splits["val"], probe.size, args.real_images, args.num_workers)
    train = (splits["train"], probe.size, args.probe_images, args.num_workers)
    distances = HeldOutDistances(encoder, (images for images, _ in read_batches(*held_out)))
    distances.add("training images", (images for images, _ in read_batches(*train)))
    decoded = (probe.decode(probe.encode(images)) for images, _ in read_batches(*held_out))
    distances.add("held-out images, decoded", decoded)
    return distances


def _other_encoder(args: argparse.Namespace, tokenizer: Tokenizer) -> EncoderConfig | None:
    """The encoder that the flags name, if they do. Raises ConfigError."""
    if args.encoder is None:
        if args.encoder_size is not None or args.encoder_weights is not None:
            raise ConfigError("--encoder-size and --encoder-weights belong to --encoder")
        return None
    size = args.encoder_size or tokenizer.config.image_size
    return EncoderConfig(name=args.encoder, image_size=size, weights=args.encoder_weights or "auto")


@dataclass(frozen=True)
class _Comparison:
    """How codes of a kind are compared with those of the training images."""

    codes: str
    name: str
    measured: str
    floor: Callable[..., torch.Tensor]
    largest: Callable[..., torch.Tensor]


COMPARISONS = {
    CodeCache: _Comparison(
        "ids", "token overlap", "equal ids with the most similar", positional_unigram, largest_overlap
    ),
    LatentCache: _Comparison(
        "latents",
        "latent similarity",
        "cosine of normalised latents with the most similar",
        positional_latents,
        largest_similarity,
    ),
}


class _Overlap:
    """Likeness of codes to those of the training images, within the bounds of the flags."""

    def __init__(self, train: Cache, args: argparse.Namespace, device: torch.device):
        self.train, self.images, self.samples, self.device = train, args.overlap_images, args.overlap_samples, device
        self.how = COMPARISONS[type(train)]
        self.codes, self.name, self.floor = self.how.codes, self.how.name, self.how.floor

    def numbers(self, codes: torch.Tensor, names: dict[str, str]) -> list[Number]:
        """``names``: what "largest" and "mean" are called; what is not named is left out."""
        chosen = torch.from_numpy(evenly_spaced(self.samples, len(codes)))
        found = self.how.largest(codes[chosen], self.train, self.images, self.device)
        compared = min(self.images, len(self.train))
        protocol = f"{self.how.measured} of {compared:,} training images x {self.train.num_views} views"
        protocol += _of(len(self.train), compared)
        if len(found) < len(codes):
            protocol += f"; {len(found):,} of {len(codes):,} images compared, evenly spaced"
        values = {"largest": found.max().item(), "mean": found.mean().item()}
        return [Number(names[which], values[which], protocol) for which in ("largest", "mean") if which in names]


def _of(all_of_them: int, taken: int) -> str:
    return "" if taken >= all_of_them else f" (of {all_of_them:,}, evenly spaced)"


def _number(name: str, share: float, count: int, protocol: str) -> Number:
    error = math.sqrt(share * (1 - share) / count)
    return Number(name, share, f"of {count:,} images, standard error {error:.3f}; {protocol}")
