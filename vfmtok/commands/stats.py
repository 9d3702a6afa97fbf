"""`vfmtok stats DATASET`: what a dataset holds, as text and as a contact sheet, or with --reference what FID compares
with."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from vfmtok.commands import flags
from vfmtok.data import image_files
from vfmtok.data.dataset_folder import open_splits
from vfmtok.data.records import RecordDataset
from vfmtok.data.stats import Summary, report_lines, summarize
from vfmtok.errors import DataError
from vfmtok.pictures.contact_sheet import Section, draw_sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Decode every image of a dataset, print what is in it and draw a contact sheet. With --reference, write "
        "instead the statistics (not the images, which precision and recall need) that FID and sFID compare samples "
        "with. DATASET may then also be an npz or a folder of images; of a prepared folder "
        "it is the validation split, unless its train_lmdb is named. torchrun may share the work."
    )
    parser.add_argument("dataset", help="a folder made by `vfmtok prepare`, or one LMDB folder")
    parser.add_argument("--out", metavar="PICTURE", help="the contact sheet (default: contact_sheet.png in DATASET)")
    parser.add_argument("--headers-only", action="store_true", help="faster: read sizes without decoding the pixels")
    parser.add_argument("--workers", type=int, help="processes that decode (default: by size, up to the cores)")
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
        _describe(args)
        return
    if args.out or args.headers_only or args.workers is not None:
        raise DataError("--out, --headers-only and --workers belong to `vfmtok stats` without --reference")
    _write_reference(args)


def _describe(args: argparse.Namespace) -> None:
    """Print every split and draw the sheet."""
    path = Path(args.dataset)
    out = Path(args.out) if args.out else path / "contact_sheet.png"
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise DataError(f"--out must end in .png, .jpg or .webp, got {out}")
    sections = []
    for split, dataset in open_splits(path).items():
        summary = summarize(dataset, args.workers, not args.headers_only)
        title = split or path.resolve().name
        print("\n".join(report_lines(title, dataset, summary, decoded=not args.headers_only)))
        sections.append(_section(title, dataset, summary))
    try:
        draw_sheet(sections).save(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}; name another place with --out") from None
    print(f"contact sheet: {out}")


def _section(title: str, dataset: RecordDataset, summary: Summary) -> Section:
    """The examples of a dataset for the sheet, by class."""
    rows = []
    for label in sorted(summary.examples):
        images = _decodable(dataset, sorted(summary.examples[label]))
        rows.append((dataset.class_name(label), summary.labels[label], images))
    return Section(f"{title}: {len(dataset)} images, {len(rows)} classes", rows)


def _decodable(dataset: RecordDataset, indices: list[int]) -> Iterator[Image.Image]:
    for index in indices:
        try:
            yield image_files.open_image(dataset[index].image)
        except image_files.NotAnImage:  # only after --headers-only, which did not look
            continue


def _write_reference(args: argparse.Namespace) -> None:
    """Under torchrun every process takes a share, and the first one writes."""
    from vfmtok import distributed  # PyTorch and the Inception network take seconds, `vfmtok stats` alone needs neither
    from vfmtok.evaluation.image_sources import open_images
    from vfmtok.evaluation.inception import open_inception
    from vfmtok.evaluation.reference import measure_reference
    from vfmtok.evaluation.reference_file import write_reference

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
