"""`vfmtok sample --gpt RUN --vq-ckpt RUN --classes 207,cat --out grid.png`: images of classes, as one picture.

Shapes: N images, K tokens, S side.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from vfmtok import distributed
from vfmtok.commands.models import add_models, open_models
from vfmtok.commands.pictures_of_images import picture_path, save
from vfmtok.commands.sampling_flags import add_sampling, sampling_of
from vfmtok.errors import ConfigError
from vfmtok.generators.contract import changed
from vfmtok.generators.drawing import draw_images, to_precision
from vfmtok.pictures.rows import draw_rows

LARGEST_IMAGE = 8192  # px
MOST_BYTES = 8 << 30  # of all images, as uint8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Draw images of classes, as one picture. Every image is a function of (--seed, its number), so neither the "
        "batch nor the number of processes changes it. Under torchrun the images are shared among the processes."
    )
    add_models(parser)
    parser.add_argument(
        "--classes", required=True, metavar="A,B", help="names where the run knows them, numbers, or all"
    )
    parser.add_argument("--n", type=int, default=8, help="images of each class (default 8)")
    parser.add_argument("--out", default="samples.png", help="the picture (default samples.png)")
    add_sampling(parser)
    parser.add_argument("--seed", "--global-seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32, help="images at a time (default 32)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--image-size", type=int, help="side of an image (default: the tokenizer's)")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    if args.n < 1 or args.batch_size < 1:
        raise ConfigError("--n and --batch-size must be positive")
    with distributed.group() as world:
        _sample(args, world)


def _sample(args: argparse.Namespace, world: distributed.World) -> None:
    with distributed.together():
        tokenizer, gpt, classes = open_models(args, world.device)
        chosen = find_classes(args.classes, classes, gpt.config.num_classes)
        if args.precision == "bf16":
            gpt = to_precision(gpt, "bf16")
        sampling = sampling_of(args, gpt)  # impossible settings end it here
        labels = torch.tensor(chosen).repeat_interleave(args.n)  # (N,)
        size = tokenizer.config.image_size if args.image_size is None else args.image_size
        if not 1 <= size <= LARGEST_IMAGE:
            raise ConfigError(f"--image-size must be from 1 to {LARGEST_IMAGE} pixels")
        if len(labels) * size**2 * 3 > MOST_BYTES:
            raise ConfigError(
                f"{len(labels):,} images of {size} px are more than {MOST_BYTES >> 30} GiB: take fewer (--n, "
                "--classes) or smaller ones (--image-size)"
            )
        out = picture_path(args.out) if world.is_main else Path(args.out)
    settings = {**dataclasses.asdict(sampling), "seed": args.seed}
    pixels = draw_images(gpt, tokenizer, labels, size, args.batch_size, world, **settings)  # (N,S,S,3)
    with distributed.together():
        if world.is_main:
            names = [classes[label] if classes else f"class {label}" for label in chosen]
            title = f"{Path(args.gpt).name}: {', '.join([sampling.guidance, *changed(sampling)])}, seed {args.seed}"
            save(draw_rows(pixels.reshape(len(chosen), args.n, size, size, 3), names, title), out)
            print(f"{args.out}: {len(labels)} images of {size} px, {len(chosen)} classes, {title}")


def find_classes(text: str, names: list[str] | None, num_classes: int) -> list[int]:
    """Labels of "207,cat", or of "all". Names may hold commas, and one of a class's several names is enough.

    Raises:
        ConfigError: something is neither a label nor a name, or it could be more than one class.
    """
    if text.strip() == "all" and "all" not in (names or ()):
        return list(range(num_classes))
    labels_of: dict[str, list[int]] = {}
    for label, name in enumerate(names or ()):
        labels_of.setdefault(_words(name), []).append(label)
    parts = [part.strip() for part in text.split(",")]
    labels, start = [], 0
    while start < len(parts):
        # The longest name that begins here: "tench, Tinca tinca" is one class.
        ends = (end for end in range(len(parts), start, -1) if ", ".join(parts[start:end]) in labels_of)
        end = next(ends, start + 1)
        word = ", ".join(parts[start:end])
        if end > start + 1 and all(part in labels_of for part in parts[start:end]):
            raise ConfigError(f"--classes: '{word}' is a class, and so are its parts: give numbers")
        if word:
            labels.append(_find_class(word, labels_of, names, num_classes))
        start = end
    if not labels:
        raise ConfigError("--classes names no class")
    return labels


def _words(name: str) -> str:
    return ", ".join(part.strip() for part in name.split(","))


def _find_class(word: str, labels_of: dict[str, list[int]], names: list[str] | None, num_classes: int) -> int:
    """The label of one name or number. Raises ConfigError."""
    found = labels_of.get(word) or [x for name in labels_of if word in name.split(", ") for x in labels_of[name]]
    if len(found) > 1:
        numbers = " or ".join(map(str, found[:5]))
        raise ConfigError(f"--classes: {len(found)} classes are called '{word}': give a number, {numbers}")
    if found:
        return found[0]
    if word.isdecimal() and int(word) < num_classes:
        if names and any(name.isdecimal() for name in names):
            label = int(word)
            called = f"label {label} is class '{names[label]}'" if label < len(names) else f"label {label} has no name"
            raise ConfigError(f"--classes: no class is called '{word}', though classes are called by numbers: {called}")
        return int(word)
    known = f" or a name such as '{names[0]}'" if names else " (this generator does not know names of classes)"
    raise ConfigError(f"--classes: '{word}' is no class: give a number in [0,{num_classes}){known}")
