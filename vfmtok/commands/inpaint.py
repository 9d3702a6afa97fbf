"""`vfmtok inpaint IMAGE... --gpt RUN --vq-ckpt RUN --out picture.png`: a part of each image is kept, the rest drawn.

Shapes: n images, N completions of each, S side, h, w the grid of the tokens.
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.code import Code
from vfmtok.commands import flags
from vfmtok.commands.models import add_models, open_models
from vfmtok.commands.pictures_of_images import open_crops, picture_path, save
from vfmtok.commands.sample import find_classes
from vfmtok.commands.sampling_flags import add_sampling, sampling_of
from vfmtok.data.transforms import to_unit_range
from vfmtok.errors import ConfigError
from vfmtok.evaluation.completions import complete, read_mask
from vfmtok.generators.contract import Generator
from vfmtok.pictures.rows import draw_columns
from vfmtok.tokenizers.contract import to_pixels
from vfmtok.tokenizers.editing import REGIONS, grid_of, region

ABOUT = """\
Images of which the generator redraws a chosen part. That part is mid-grey when the image is encoded, and the rest comes
out as the tokenizer reconstructs it. Tokens without a place in the image (Hita's holistic ones) are kept. A GPT that
draws row by row can redraw the bottom only; a RAR, or a GPT trained on permuted orders, any part."""
EXAMPLES = """for example:
  vfmtok inpaint cat.png --gpt results/gpt --vq-ckpt results/tok --class-of cat --n 4 --out cats.png
  vfmtok inpaint photos/ --gpt results/rar --vq-ckpt results/tok --part centre --share 0.25
  vfmtok inpaint photos/ --gpt results/rar --vq-ckpt results/tok --mask mask.png"""
PART, SHARE = "bottom", 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files and folders")
    add_models(parser)
    parser.add_argument("--class-of", metavar="CLASS", help="name or number of the images' class (default: no class)")
    parser.add_argument("--part", choices=REGIONS, help=f"what is redrawn (default {PART})")
    parser.add_argument("--share", type=float, help=f"how much of the image that is (default {SHARE})")
    parser.add_argument(
        "--mask",
        metavar="FILE",
        help="instead: a black and white picture of any form, white where images are redrawn; as large as the images "
        "are cut, or with one pixel for each token",
    )
    parser.add_argument("--n", type=flags.positive, default=4, help="completions of each image (default 4)")
    parser.add_argument("--out", default="inpainted.png", help="the picture (default inpainted.png)")
    add_sampling(parser)
    parser.add_argument("--batch-size", type=flags.positive, default=16, help="images of a pass (default 16)")
    parser.add_argument("--seed", "--global-seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    out = picture_path(args.out)
    with distributed.group() as world:
        if world.size > 1:
            raise ConfigError("`vfmtok inpaint` runs in one process")
        tokenizer, generator, classes = open_models(args, world.device, encodes=True)
        sampling = sampling_of(args, generator)
        label = _label(args.class_of, classes, generator)
        size, code = tokenizer.config.image_size, tokenizer.code
        redrawn, part = _redrawn(args, size, code)
        crops = to_unit_range(open_crops(args.images, size, out)).to(world.device)  # (n,3,S,S)
        settings = {**dataclasses.asdict(sampling), "seed": args.seed, "batch": args.batch_size}
        found = complete(tokenizer, generator, crops, redrawn, label, args.n, **settings)
    columns = {"image": to_pixels(crops, size), "given": found.given}
    columns |= {f"drawn {number + 1}": found.drawn[:, number] for number in range(args.n)}
    title = f"{part}: {sampling.guidance}, seed {args.seed}"
    save(draw_columns({name: pixels.cpu().numpy() for name, pixels in columns.items()}, title), out)
    kept = f"{found.kept} of {code.num_tokens} tokens kept"
    print(f"{out}: {len(crops)} images, {kept}, {args.n} completions each, {title}")


def _label(name: str | None, classes: list[str] | None, generator: Generator) -> int:
    """Raises ConfigError: it names no class, or several."""
    if name is None:
        return generator.null_class
    labels = find_classes(name, classes, generator.num_classes)
    if len(labels) != 1:
        raise ConfigError(f"--class-of names one class, '{name}' are {len(labels)}")
    return labels[0]


def _redrawn(args: argparse.Namespace, size: int, code: Code) -> tuple[Tensor, str]:
    """(h,w) bool, and what it is called. Raises VFMTokError."""
    if args.mask is None:
        part, share = args.part or PART, SHARE if args.share is None else args.share
        return torch.from_numpy(region(part, grid_of(code), share)), f"the {part} redrawn ({share:g})"
    if args.part is not None or args.share is not None:
        raise ConfigError("--mask says what is redrawn: leave --part and --share out")
    redrawn = read_mask(args.mask, size, grid_of(code))
    return redrawn, f"{Path(args.mask).name} redrawn ({redrawn.float().mean():.2g})"
