"""`vfmtok style --content A.png --style B.png --vq-ckpt RUN --out picture.png`: images in the style of others.

Shapes: n content images, m style images, K tokens, S side.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.commands import flags
from vfmtok.commands.models import open_tokenizer
from vfmtok.commands.pictures_of_images import open_crops, picture_path, save
from vfmtok.data.transforms import to_unit_range
from vfmtok.errors import ConfigError
from vfmtok.layers.precision import full_float32
from vfmtok.pictures.rows import draw_columns
from vfmtok.tokenizers.contract import to_pixels
from vfmtok.tokenizers.editing import styled_ids

AT_ONCE = 16  # images of a pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Zero-shot style transfer with a tokenizer that has holistic tokens (Hita): the patch tokens of each content "
        "image, decoded with the holistic tokens of each style image. The columns: content, its reconstruction, then "
        "one for each style image, which is the top row."
    )
    parser.add_argument("--content", nargs="+", required=True, metavar="IMAGE", help="image files and folders")
    parser.add_argument("--style", nargs="+", required=True, metavar="IMAGE", help="image files and folders")
    flags.add_tokenizer(parser)
    flags.add_set(parser, "tokenizer")
    parser.add_argument("--out", default="styled.png", help="the picture (default styled.png)")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    out = picture_path(args.out)
    with distributed.group() as world:
        if world.size > 1:
            raise ConfigError("`vfmtok style` runs in one process")
        tokenizer = open_tokenizer(args, world.device)
        size, code = tokenizer.config.image_size, tokenizer.code
        styled_ids(code, *torch.empty(2, 0, code.shape[0], dtype=torch.int64))  # a code without both kinds ends it here
        content, style = (
            to_unit_range(open_crops(paths, size, out)).to(world.device) for paths in (args.content, args.style)
        )  # (n,3,S,S), (m,3,S,S)
        with full_float32(world.device.type), torch.no_grad():
            ids, style_ids = (_in_parts(lambda part: tokenizer.encode(part).ids, images) for images in (content, style))
            made = {"reconstruction": ids}  # (n,K), (n,K), ...
            made |= {f"style {n + 1}": styled_ids(code, ids, row.expand_as(ids)) for n, row in enumerate(style_ids)}
            columns = {"content": to_pixels(content, size).cpu()}  # (n,S,S,3)
            for name, found in made.items():
                columns[name] = _in_parts(lambda part: tokenizer.decode_to_uint8(part, size), found).cpu()
        blank = torch.full((1, size, size, 3), 255, dtype=torch.uint8)
        top = torch.cat([blank, blank, to_pixels(style, size).cpu()])  # (2+m,S,S,3): above its column
        pictures = {
            name: torch.cat([head[None], column]).numpy()
            for (name, column), head in zip(columns.items(), top, strict=True)
        }
        save(draw_columns(pictures, "patch tokens of the left column, holistic tokens of the top row"), out)
        print(f"{out}: {len(content)} images in the style of {len(style)}")


def _in_parts(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """The function of all rows, so many at a time that they fit the memory."""
    return torch.cat([function(part) for part in rows.split(AT_ONCE)])
