"""Published flags of the evaluation scripts, and what they open."""

from __future__ import annotations

import argparse
import os
import typing
from pathlib import Path

from vfmtok import distributed
from vfmtok.commands import flags, models, tokenizer_flags
from vfmtok.commands.flags import path_of
from vfmtok.commands.parser import OneLineParser
from vfmtok.commands.sampling_flags import add_guidance_scale, add_sampling, guidance_scale, label_sampling, sampling_of
from vfmtok.data.dataset_folder import open_split
from vfmtok.data.records import RecordDataset
from vfmtok.errors import ConfigError
from vfmtok.evaluation.image_sources import is_dataset
from vfmtok.evaluation.pixel_protocols import PixelProtocol
from vfmtok.evaluation.resizing import Resize
from vfmtok.evaluation.samples import Samples
from vfmtok.generators.contract import Generator
from vfmtok.generators.drawing import to_precision
from vfmtok.layers.precision import DTYPES
from vfmtok.pretrained.loading import Weights, load_generator
from vfmtok.tokenizers.contract import Tokenizer

DEFAULT_GPT = "GPT-B"  # of released weights, which do not say their size

# Of the tokenizer, for weights whose file does not tell it; what each sets depends on its family.
MODEL_FLAGS = tuple(
    (flag, flags.positive if takes is int else takes, text)
    for flag, takes, text in tokenizer_flags.MODEL_FLAGS
    if flag
    in (
        "--image-size",
        "--z-channels",
        "--codebook-size",
        "--codebook-slots-embed-dim",
        "--codebook-embed-dim",
        "--embed-dim",
        "--num-slots",
        "--vq-model",
        "--ae-model",
    )
)


def reconstruction_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        "vqgan_test.py",
        description="Reconstruct a dataset and measure rFID, rIS, PSNR, SSIM, LPIPS and codebook usage. The same "
        "command again continues; scripts/torchrun.sh starts one process per GPU.",
        allow_abbrev=False,
    )
    _add_tokenizer_flags(parser)
    flags.add_set(parser, "tokenizer")
    parser.add_argument(
        "--anno-file", required=True, metavar="PATH", help="images: a prepared folder (its val_lmdb) or an LMDB"
    )
    parser.add_argument(*flags.names("--output_dir"), default="recons", metavar="DIR", help="results (default recons)")
    parser.add_argument(
        "--image-size-eval",
        type=flags.positive,
        default=256,
        metavar="N",
        help="side at which is compared (default 256)",
    )
    parser.add_argument("--batch-size", type=flags.positive, default=32, metavar="N", help="per process (default 32)")
    workers = min(4, os.cpu_count() or 1)
    parser.add_argument(
        *flags.names("--num_workers"),
        type=flags.count,
        default=workers,
        metavar="N",
        help="loading processes of each process",
    )
    parser.add_argument(
        "--resize",
        choices=typing.get_args(Resize),
        default="bicubic",
        help="to --image-size-eval, of both sides: without antialiasing (default), or as uint8 by Pillow, as Hita does",
    )
    parser.add_argument(
        "--protocol",
        choices=typing.get_args(PixelProtocol),
        default="ours",
        help="vfm-vae: torchvision's resize and crop, sampled latents, truncation, and a Gaussian SSIM besides",
    )
    parser.add_argument("--tokens", metavar="N,N", help="tokens whose sampling points are drawn (default: four)")
    flags.add_lpips(parser)
    parser.add_argument("--no-lpips", action="store_true", help="leave LPIPS out")
    flags.add_measuring_encoder(
        parser, "--distance", "also distance@ENCODER: LPIPS without learned heads, on any timm encoder's features"
    )
    parser.add_argument(
        "--linear-probe", metavar="PATH", help="L.P.: training images of a linear probe on the tokens (a train_lmdb)"
    )
    parser.add_argument("--probe-optimizer", choices=("lars", "adamw"), help="of the probe (default lars)")
    _add_inception_flags(
        parser, ("--reference",), "statistics or images that rFID compares with (default: the originals)"
    )
    return parser


def generation_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        "test_net.py",
        description="Sample images from a generator and measure gFID, sFID, IS, precision and recall. The same command "
        "again continues; several --cfg-scale values, with commas between, make a sweep.",
        allow_abbrev=False,
    )
    _add_tokenizer_flags(parser, required=False)
    flags.add_set(parser, "tokenizer", "generator")
    flags.add_generator(parser, "--gpt-ckpt")
    flags.add_generator_facts(parser)
    parser.add_argument(
        "--vocab-size", type=flags.positive, metavar="N", help="codes of the GPT (default: as many as the file holds)"
    )
    parser.add_argument(
        "--latent-size",
        type=flags.positive,
        metavar="N",
        help="tokens per side, 16 for 256 tokens (default: the tokenizer's)",
    )
    parser.add_argument(
        *("--cls", "--token-dim"),
        dest="token_dim",
        type=flags.positive,
        metavar="N",
        help="of REG: width of the class token that is drawn along (default: the weights')",
    )
    parser.add_argument(
        "--downsample-size",
        type=flags.positive,
        metavar="N",
        help="the tokenizer's pixels per cell; checked against it",
    )
    parser.add_argument(
        "--from-fsdp",
        action="store_true",
        help="published mark of GPT files that are the bare state dict; such files are recognised without it too",
    )
    parser.add_argument(
        "--gpt-set",
        dest="set",
        action="append",
        type=_of_generator,
        default=argparse.SUPPRESS,
        metavar="FIELD=VALUE",
        help="the same as --set generator.FIELD=VALUE",
    )
    parser.add_argument(
        *flags.names("--sample-dir"),
        default="samples",
        metavar="DIR",
        help="every setting gets a folder in it (default samples)",
    )
    plain = Samples()
    parser.add_argument(
        "--image-size-eval",
        type=flags.positive,
        default=plain.size,
        metavar="N",
        help="side of the samples (default 256)",
    )
    parser.add_argument(
        "--num-fid-samples", type=flags.positive, default=plain.count, metavar="N", help="default 50000, exactly"
    )
    parser.add_argument("--per-proc-batch-size", type=flags.positive, default=32, metavar="N", help="default 32")
    parser.add_argument(
        "--cfg-scale", metavar="S[,S...]", help="1 is without guidance (default: the family's, of a GPT 1.5)"
    )
    add_guidance_scale(parser, lambda text: str(guidance_scale(text)))
    add_sampling(parser, leave_out=("--cfg-scale",))
    parser.add_argument(*flags.names("--global-seed"), type=int, default=plain.seed, metavar="N", help="default 0")
    parser.add_argument(
        "--classes", choices=("random", "balanced"), default=plain.classes, help="random is the published choice"
    )
    parser.add_argument(
        "--label-sampling",
        dest="classes",
        type=label_sampling,
        metavar="{equal,random}",
        help="--classes, as RAE's scripts call it",
    )
    parser.add_argument(
        "--tf32", action=argparse.BooleanOptionalAction, default=False, help="published; here float32 keeps all bits"
    )
    parser.add_argument(
        "--precision", choices=DTYPES, default=plain.precision, help="of the GPT (default none: float32, no TF32)"
    )
    parser.add_argument(
        "--uint8-offset", type=float, default=plain.uint8_offset, metavar="X",
        help="pixels are 127.5 x + X, truncated (default 128; VFM-VAE and REG publish with 127.5)",
    )  # fmt: skip
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the sampling step"
    )
    _add_inception_flags(
        parser,
        ("--ref-batch", "--reference"),
        f"npz of ADM ({flags.ADM_REFERENCE}) or `vfmtok stats --reference`, a folder of images, or a dataset",
    )
    flags.add_spatial_tap(parser)
    return parser


def _add_tokenizer_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    flags.add_tokenizer(parser, required)
    parser.add_argument(
        "--prefer",
        choices=("ema", "model"),
        help="where weights have an average, it or the last ones, of both models (default: the average; of published "
        "weights those that their publishers sampled with)",
    )
    flags.add_model_flags(parser, MODEL_FLAGS)


def _add_inception_flags(parser: argparse.ArgumentParser, reference: tuple[str, ...], text: str) -> None:
    flags.add_inception(parser)
    parser.add_argument(*reference, dest="reference", metavar="PATH", help=text)
    parser.add_argument(
        "--no-fid", action="store_true", help="without the Inception network: what needs none is still done"
    )


def _of_generator(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"--gpt-set takes FIELD=VALUE, got '{text}'")
    return f"generator.{text}"


# --------------------------------------------------------------------------------------
# What they open
# --------------------------------------------------------------------------------------


def open_tokenizer(args: argparse.Namespace, world: distributed.World, encodes: bool = True) -> Tokenizer:
    """On this process's device; ``encodes`` as for ``models.open_tokenizer``. Raises VFMTokError."""
    return models.open_tokenizer(args, world.device, flags.given_model_flags(args, MODEL_FLAGS), encodes)


def open_gpt(
    args: argparse.Namespace, tokenizer: Tokenizer, world: distributed.World
) -> tuple[Generator, str, list[str] | None]:
    """On this process's device, in the dtype it samples in; what its results are called; its classes' names if known.

    Raises VFMTokError.
    """
    on_grid = tokenizer.code.cells
    if args.latent_size is not None and args.latent_size**2 != on_grid:
        raise ConfigError(
            f"--latent-size {args.latent_size} makes {args.latent_size**2} tokens, the tokenizer has {on_grid}"
        )
    if args.tf32:
        raise ConfigError("--tf32: samples are drawn in full float32 here, the same on every device (--precision bf16)")
    stride = getattr(tokenizer.config, "stride", None)
    if args.downsample_size not in (None, stride):
        raise ConfigError(
            f"--downsample-size {args.downsample_size} does not fit the tokenizer, whose stride is {stride}"
        )
    path = path_of(args.gpt_ckpt)
    fields = models.generator_fields(args)
    gpt, weights = load_generator(path, tokenizer, args.gpt_model, fields, DEFAULT_GPT, args.prefer, args.latent_stats)
    models.add_guide(args, gpt, tokenizer)
    name = args.gpt_model or _name_of(weights, path)
    return to_precision(gpt.to(world.device), args.precision), name, weights.classes


def _name_of(weights: Weights, path: Path) -> str:
    """Of a generator whose size was not named."""
    if weights.published is not None:
        return Path(weights.published.file).stem
    return DEFAULT_GPT if weights.config is None else path.resolve().name


def samples_of(args: argparse.Namespace, generator: Generator) -> Samples:
    """What test_net.py samples; the guidance scale is the sweep's. Raises ConfigError."""
    without_scale = argparse.Namespace(**{**vars(args), "cfg_scale": None})
    return Samples(
        sampling_of(without_scale, generator),
        count=args.num_fid_samples,
        size=args.image_size_eval,
        seed=args.global_seed,
        classes=args.classes,
        precision=args.precision,
        uint8_offset=args.uint8_offset,
    )


def open_records(path: str) -> RecordDataset:
    """The validation split of a prepared folder, or the one LMDB that is named. Raises DataError."""
    return open_split(Path(path).expanduser(), "val")


def class_names(reference: str | None) -> list[str] | None:
    """Of a reference that is a dataset, for the grid. Raises DataError."""
    path = path_of(reference)
    return open_records(reference).classes if path is not None and is_dataset(path) else None
