"""`vfmtok decode CODES OUT --vq-ckpt RUN`: a cache, or shards of latents, as images."""

import argparse
from pathlib import Path

from vfmtok import distributed
from vfmtok.code import Latents
from vfmtok.commands import flags
from vfmtok.commands.models import open_tokenizer
from vfmtok.data.latent_cache import open_cache
from vfmtok.errors import ConfigError
from vfmtok.evaluation.decoding import CachedView, StoredShards, decode_codes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Decode every code of a cache, or of *.safetensors shards with latents and labels (a diffusion model's "
        "samples), into OUT/samples.npz (images and labels, as `vfmtok measure` reads them). Under torchrun the work "
        "is shared; the same command again continues."
    )
    parser.add_argument("codes", metavar="CODES", help="a cache of `vfmtok codes`, or a folder of shards of latents")
    parser.add_argument("out", metavar="OUT", help="the folder of samples.npz")
    flags.add_tokenizer(parser)
    flags.add_set(parser, "tokenizer")
    parser.add_argument("--view", metavar="NAME", help="of a cache, such as 'centre flipped' (default: the first)")
    parser.add_argument("--images", action="store_true", help="PNGs too: OUT/images/000000.png, ...")
    parser.add_argument("--image-size-eval", type=flags.positive, metavar="N", help="default: the tokenizer's size")
    parser.add_argument("--batch-size", type=flags.positive, default=32, metavar="N", help="images at a time (32)")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    path, out = Path(args.codes).expanduser(), Path(args.out).expanduser()
    with distributed.group() as world:
        with distributed.together():
            tokenizer = open_tokenizer(args, world.device, encodes=False)
            codes = _open(path, args.view, tokenizer)
        size = args.image_size_eval or tokenizer.config.image_size
        results = decode_codes(codes, tokenizer, out, world, size=size, batch=args.batch_size, pictures=args.images)
        distributed.print_main(f"{out / 'samples.npz'}: {results['samples']['count']:,} images of {size} px")
        for warning in results["warnings"]:
            distributed.print_main(f"warning: {warning}")


def _open(path: Path, view: str | None, tokenizer) -> CachedView | StoredShards:
    """Raises VFMTokError."""
    shards = not (path / "cache.json").is_file() and any(path.glob("*.safetensors"))
    if not shards:
        return CachedView(open_cache(path), view, tokenizer)
    if not isinstance(tokenizer.code, Latents):
        raise ConfigError(f"{path} holds latents, and this tokenizer makes {tokenizer.code}")
    if view is not None:
        raise ConfigError("--view belongs to a cache; of shards `latents` are decoded")
    return StoredShards(path, tokenizer)
