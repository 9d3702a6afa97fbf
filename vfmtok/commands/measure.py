"""`vfmtok measure SAMPLES --reference REF`: gFID, sFID, IS, precision, recall and KID of samples that are there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vfmtok.commands import flags
from vfmtok.errors import ConfigError, EvaluationError
from vfmtok.files import write_json

if TYPE_CHECKING:
    from vfmtok.distributed import World

BY_CLASS = (
    "the images come one folder or class after the other: IS, over splits in order, differs from that of a mixture"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure gFID, sFID, IS, precision, recall and KID of samples by any program: an npz (arr_0, uint8 NHWC, as "
        "ADM's evaluation takes it), a folder or archive of images, or a prepared dataset, which needs --size. Under "
        "torchrun the processes share the work."
    )
    parser.add_argument("samples", help="an npz with arr_0, or images as `vfmtok prepare` takes them")
    parser.add_argument("--size", type=int, metavar="N", help="cut images to N px (default: they are of one size)")
    parser.add_argument("--reference", metavar="PATH", help="an npz of ADM or `vfmtok stats --reference`, or images")
    flags.add_inception(parser)
    flags.add_spatial_tap(parser)
    flags.add_measuring_encoder(parser, "--fd", "also fd@ENCODER: the distance on any timm encoder's features")
    parser.add_argument("--out", metavar="FILE", help="the results as JSON")
    parser.add_argument("--batch-size", type=int, default=64, help="images per pass and process (default 64)")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    from vfmtok import distributed  # PyTorch and the Inception network take seconds, `vfmtok --help` needs neither

    if args.batch_size < 1:
        raise ConfigError("--batch-size must be positive")
    if args.size is not None and (args.size < 1 or args.samples.endswith(".npz")):
        raise ConfigError(
            "--size must be positive" if args.size < 1 else "--size: the images of an npz stay as they are"
        )
    chosen = flags.measuring_encoder(args, "--fd")
    out = Path(args.out).expanduser() if args.out else None
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"no folder {out.parent} to write {out.name} to")
    with distributed.group() as world:
        _measure(args, chosen, out, world)


def _measure(args: argparse.Namespace, chosen: tuple[str, str] | None, out: Path | None, world: World) -> None:
    from vfmtok import distributed
    from vfmtok.evaluation.encoder_distance import open_encoder
    from vfmtok.evaluation.image_sources import open_images, size_of
    from vfmtok.evaluation.inception import open_inception
    from vfmtok.evaluation.reference import open_reference_set
    from vfmtok.evaluation.results import as_lines, as_tree, not_finite
    from vfmtok.evaluation.sample_metrics import Subject, measure_samples

    path = Path(args.samples).expanduser()
    with distributed.together():
        images = open_images(path, args.size)
        width, _, height = size_of(images).partition("x")
        if width != height:
            raise EvaluationError(f"{path}: the images are {width}x{height}; FID is measured on squares")
        encoder = open_encoder(*chosen).to(world.device) if chosen is not None else None
    weights = Path(args.inception).expanduser() if args.inception else None
    network = open_inception(weights, world, args.spatial_tap)
    references = None
    if args.reference:
        where = Path(args.reference).expanduser()
        references = open_reference_set(where, network, int(width), args.batch_size, world)
    subject = Subject(images, "", f"{len(images):,} images of {images.name} at {width} px")
    found = measure_samples(subject, network, references, args.batch_size, world, encoder)
    with distributed.together():
        if world.is_main:
            results = {
                "samples": {"path": str(path), "count": len(images), "size": int(width)},
                "Inception": network.protocol(),
                "reference": references.reference.identity if references is not None else None,
                "numbers": as_tree(found.numbers),
                "warnings": found.warnings + not_finite(found.numbers),
                "notes": found.notes + ([BY_CLASS] if images.by_class else []),
            }
            if out is not None:
                write_json(out, results)
            print("\n".join(as_lines(str(path), {key: results[key] for key in ("numbers", "warnings", "notes")})))
