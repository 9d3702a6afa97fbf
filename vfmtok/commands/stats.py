"""`vfmtok stats DATASET`: what a dataset holds (data/stats.py) or, with --reference, what FID compares with.

One command as users see it; it lives here because the data room does not know the evaluation.
"""

import argparse
from pathlib import Path

from vfmtok.commands import flags
from vfmtok.data import stats
from vfmtok.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    stats.add_arguments(parser)
    parser.description += (
        " With --reference, write instead the statistics (not the images, which precision and recall need) that FID "
        "and sFID compare samples with. DATASET may then also be an npz or a folder of images; of a prepared folder "
        "it is the validation split, unless its train_lmdb is named. torchrun may share the work."
    )
    group = parser.add_argument_group("reference statistics")
    group.add_argument("--reference", metavar="OUT.npz", help="the file to write, in ADM's layout")
    group.add_argument("--size", type=int, help="side of the evaluation crop (default 256; an npz is taken as it is)")
    flags.add_inception(group)
    flags.add_spatial_tap(group, default=None)
    group.add_argument("--batch-size", type=int, help="images per pass and process (default 64)")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    extra = [name for name in ("size", "inception", "spatial_tap", "batch_size") if getattr(args, name) is not None]
    if args.reference is None:
        if extra:
            raise DataError(f"--{extra[0].replace('_', '-')} belongs to --reference OUT.npz")
        stats.run(args)
        return
    if args.out or args.headers_only or args.workers is not None:
        raise DataError("--out, --headers-only and --workers belong to `vfmtok stats` without --reference")
    _write_reference(args)


def _write_reference(args: argparse.Namespace) -> None:
    """Under torchrun every process takes a share, and the first one writes."""
    from vfmtok import distributed  # PyTorch and the Inception network take seconds, `vfmtok stats` alone needs neither
    from vfmtok.evaluation.compared import open_inception
    from vfmtok.evaluation.image_sources import open_images
    from vfmtok.evaluation.reference import measure_reference, write_reference

    source, out = Path(args.dataset).expanduser(), Path(args.reference).expanduser()
    size, batch = args.size or 256, args.batch_size or 64
    if size < 1 or batch < 1 or out.suffix != ".npz":
        raise DataError("--size and --batch-size must be positive and --reference must end in .npz")
    if not out.parent.is_dir():
        raise DataError(f"no folder {out.parent} to write {out.name} to")
    with distributed.group() as world:
        with distributed.together():
            images = open_images(source, size)
        weights = Path(args.inception).expanduser() if args.inception else None
        network = open_inception(weights, world, args.spatial_tap or "convolution")
        with distributed.together():
            reference = measure_reference(network, images, images.name, batch, world.rank, world.size)
        with distributed.together():
            if world.is_main:
                write_reference(reference, out)
        about = reference.protocol
        distributed.print_main(f"{out}: {about['count']:,} images of {about['source']}, crop {about['crop']}")
        if bad := about.get("bad_records"):
            distributed.print_main(f"  {bad} bad records left out: `vfmtok stats {source}` lists them")
        distributed.print_main(f"  {about['network']}, weights {about['weights_sha256'][:12]}...")
        distributed.print_main(f"  SHA-256 of statistics and protocol: {reference.sha256}")
