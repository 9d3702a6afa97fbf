"""`vfmtok inpaint IMAGE... --gpt RUN --vq-ckpt RUN --out picture.png`: a part of each image is kept, the rest drawn.

Shapes: n images, N completions of each, K tokens, S side.
"""

import argparse
import dataclasses

import torch

from vfmtok import distributed
from vfmtok.commands import flags
from vfmtok.commands.models import add_models, open_models
from vfmtok.commands.pictures_of_images import open_crops, picture_path, save
from vfmtok.commands.sample import find_classes
from vfmtok.commands.sampling_flags import add_sampling, sampling_of
from vfmtok.data.transforms import to_unit_range
from vfmtok.errors import ConfigError
from vfmtok.generators.inpainting import inpaint
from vfmtok.layers.precision import full_float32
from vfmtok.pictures.rows import draw_columns
from vfmtok.tokenizers.contract import to_pixels
from vfmtok.tokenizers.editing import REGIONS, grid_of, kept_tokens, region, without_region

ABOUT = """\
Images of which the generator redraws a chosen part. That part is mid-grey when the image is encoded, and the rest comes
out as the tokenizer reconstructs it. Tokens without a place in the image (Hita's holistic ones) are kept. A GPT that
draws row by row can redraw the bottom only; a RAR, or a GPT trained on permuted orders, any part."""
EXAMPLES = """for example:
  vfmtok inpaint cat.png --gpt results/gpt --vq-ckpt results/tok --class-of cat --n 4 --out cats.png
  vfmtok inpaint photos/ --gpt results/rar --vq-ckpt results/tok --part centre --share 0.25"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files and folders")
    add_models(parser)
    parser.add_argument("--class-of", metavar="CLASS", help="name or number of the images' class (default: no class)")
    parser.add_argument("--part", choices=REGIONS, default="bottom", help="what is redrawn (default bottom)")
    parser.add_argument("--share", type=float, default=0.5, help="how much of the image that is (default 0.5)")
    parser.add_argument("--n", type=flags.positive, default=4, help="completions of each image (default 4)")
    parser.add_argument("--out", default="inpainted.png", help="the picture (default inpainted.png)")
    add_sampling(parser)
    parser.add_argument("--seed", "--global-seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    out = picture_path(args.out)
    with distributed.group() as world:
        if world.size > 1:
            raise ConfigError("`vfmtok inpaint` runs in one process")
        tokenizer, generator, classes = open_models(args, world.device, encodes=True)
        sampling = sampling_of(args, generator)
        labels = [generator.null_class]
        if args.class_of is not None:
            labels = find_classes(args.class_of, classes, generator.num_classes)
        if len(labels) != 1:
            raise ConfigError(f"--class-of names one class, '{args.class_of}' are {len(labels)}")
        size, code = tokenizer.config.image_size, tokenizer.code
        redrawn = torch.from_numpy(region(args.part, grid_of(code), args.share))  # (h,w)
        crops = to_unit_range(open_crops(args.images, size, out)).to(world.device)  # (n,3,S,S)
        given = without_region(crops, redrawn)
        columns = {"image": to_pixels(crops, size), "given": to_pixels(given, size)}
        with full_float32(world.device.type), torch.no_grad():
            ids = tokenizer.encode(given).ids.repeat_interleave(args.n, dim=0)  # (n*N,K)
            label = torch.full((len(ids),), labels[0], device=world.device)
            settings = {**dataclasses.asdict(sampling), "seed": args.seed}
            drawn = inpaint(generator, ids, kept_tokens(code, redrawn.to(world.device)), label, **settings)
            pixels = torch.cat([tokenizer.decode_to_uint8(part, size) for part in drawn.split(16)])  # (n*N,S,S,3)
        columns |= {f"drawn {number + 1}": pixels[number :: args.n] for number in range(args.n)}
        title = f"the {args.part} redrawn ({args.share:g}): {sampling.guidance}, seed {args.seed}"
        save(draw_columns({name: part.cpu().numpy() for name, part in columns.items()}, title), out)
        kept = int(kept_tokens(code, redrawn).sum())
        print(
            f"{out}: {len(crops)} images, {kept} of {code.num_tokens} tokens kept, {args.n} completions each, {title}"
        )
