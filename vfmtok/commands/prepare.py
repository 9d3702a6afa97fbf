"""`vfmtok prepare SOURCE... OUT`: any folder, archive or shards of images to LMDB records.

OUT/train_lmdb and, where there is a validation split, OUT/val_lmdb hold the records, OUT/report.json
what was skipped and ignored. Encoded files are stored byte for byte unless --resize or --format asks
for something else. Every transaction commits records together with the progress, so the same command
continues after any interruption and ends with the same records. Whether the sources are still the same is
told by names and sizes, not by reading the contents (sources.py says why).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from vfmtok.data import image_files
from vfmtok.data.ordered_pool import default_workers, end_if_reimported, ordered_results
from vfmtok.data.records import Record, RecordDataset, RecordWriter
from vfmtok.errors import DataError
from vfmtok.files import replacing
from vfmtok.sources import files as source_files
from vfmtok.sources.listing import FINGERPRINT_COVERS, NO_CHOICES, Choices, Entry, Listing, list_sources
from vfmtok.sources.scratch import Scratch
from vfmtok.sources.table import describe

MAX_SKIPPED = 0.01  # share of files that may be corrupt
CHUNK = 16  # images per task of a worker
COMMIT_BYTES, COMMIT_IMAGES = 32 << 20, 512  # a transaction holds at least one of these

_EPILOG = """\
sources: a folder of class folders, a flat folder (one class), a .zip or .tar[.gz] of either, a .tar of one .tar per
class, WebDataset shards (quote a pattern: 'shard-{000..127}.tar'), parquet files, ImageNet in any form, or the word
'sample' (the 64x64 images that come with the package; a folder of that name is ./sample).
Folders, sources and shards named train, val (valid, validation, dev) and test (testing, eval, evaluation), in any case,
are splits; test stays out. Labels follow the names of the classes sorted as text. docs/data.md says more.

  vfmtok prepare sample OUT               the embedded sample set
  vfmtok prepare photos/ more.zip OUT     two sources
  vfmtok prepare --dry-run photos/ OUT    what is understood, and nothing more
  vfmtok prepare --verify OUT             read every record again
  vfmtok prepare --export OUT FOLDER      back to files

An interrupted run continues if the sources are what they were, by names and sizes (and a zip's checksums): an image
edited to exactly the same size is not noticed. --export keeps the names; an image that --resize or --format wrote
in another format gets that format's extension behind its name.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Turn images from anywhere into LMDB records. The same command continues an interrupted run."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "paths", nargs="+", metavar="SOURCE... OUT", help="one or more sources, then the folder to make"
    )
    parser.add_argument("--val-fraction", type=float, metavar="F", help="share of images for validation, by name hash")
    parser.add_argument(
        "--resize", type=int, metavar="SHORT_SIDE", help="shrink larger images to this short side (re-encodes these)"
    )
    parser.add_argument("--format", choices=("jpeg", "png", "webp"), help="re-encode images of other formats")
    parser.add_argument("--layout", choices=("vfmtok", "published"), help="published: pickled dicts (default: vfmtok)")
    parser.add_argument("--workers", type=int, help="processes that check images (default: by size, up to the cores)")
    add_choices(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what the sources are understood as, and stop")
    parser.add_argument("--verify", action="store_true", help="read, check and decode every record of OUT (again)")
    parser.add_argument("--export", action="store_true", help="write the files of a DATASET back into OUT_FOLDER")


def add_choices(parser: argparse.ArgumentParser) -> None:
    """The flags that decide what is ambiguous in sources; ``Choices`` of them is what ``choices_of`` gives."""
    group = parser.add_argument_group("where the sources are ambiguous")
    group.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=SPLIT",
        help="what a folder, source or split becomes: test=val, x=train, x=test (left out); none: no name is a split",
    )
    group.add_argument("--label-key", metavar="KEY", help="member (cls), .json key or column that holds the labels")
    group.add_argument("--image-key", metavar="KEY", help="member (jpg) or column that holds the images")
    group.add_argument(
        "--classes-from",
        metavar="FROM",
        help="a file: labels of images (csv, jsonl, ImageNet's devkit) or the classes' names by label; imagenet: its "
        "1,000 in order; sources: each is a class; none: all are one class",
    )


def choices_of(args: argparse.Namespace) -> Choices:
    return Choices(tuple(args.split), args.label_key, args.image_key, args.classes_from)


def run(args: argparse.Namespace) -> None:
    """The command. Raises DataError for everything a user can mend."""
    *sources, out = args.paths if len(args.paths) > 1 or not args.dry_run else [args.paths[0], ""]
    _check_options(args, sources)
    if args.export:
        from vfmtok.data.dataset_folder import export

        if len(sources) != 1:
            raise DataError("--export takes a DATASET and an OUT_FOLDER")
        return export(Path(sources[0]), Path(out))
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        raise DataError(f"--val-fraction must lie between 0 and 1, got {args.val_fraction}")
    if args.resize is not None and args.resize < 1:
        raise DataError(f"--resize must be at least 1 pixel, got {args.resize}")
    choices = choices_of(args)
    if sources and args.dry_run:
        show(sources, out, args.val_fraction, choices)
    elif sources:
        options = args.val_fraction, args.resize, args.format, args.layout or "vfmtok", args.workers
        prepare(sources, out, *options, choices=choices)
    elif not args.verify:
        raise DataError("give one or more sources and then the folder to make")
    if args.verify:
        from vfmtok.data.dataset_folder import verify

        verify(Path(out), args.workers)


def _check_options(args: argparse.Namespace, sources: list[str]) -> None:
    """Raises DataError for an option that would be ignored."""
    mode = "--export" if args.export else "--verify without sources" if args.verify and not sources else None
    mode = mode or ("--dry-run" if args.dry_run else None)
    unused = {"--dry-run": ["verify", "workers"]}.get(mode, [
        "val_fraction", "resize", "format", "layout", "split", "label_key", "image_key", "classes_from", "dry_run",
        *(["workers", "verify"] if args.export else []),
    ])  # fmt: skip
    given = next((name for name in unused if getattr(args, name) not in (None, False, [])), None)
    if mode and given:
        raise DataError(f"{mode} has no use for --{given.replace('_', '-')}: leave it out")


def prepare(
    sources: list[str],
    out: str | Path,
    val_fraction: float | None = None,
    resize: int | None = None,
    image_format: str | None = None,
    layout: str = "vfmtok",
    workers: int | None = None,
    choices: Choices = NO_CHOICES,
) -> None:
    """Make or continue the dataset folder ``out``; see ``add_arguments`` for the options.

    Raises:
        DataError: the sources can't be listed or have changed since the dataset was begun, the disk is
            full, or more than 1% of the files are corrupt (after report.json was written).
    """
    end_if_reimported()
    out = Path(out)
    _check_place(sources, out)
    options = {"resize": resize, "format": image_format, "layout": layout, "val_fraction": val_fraction}
    with Scratch(out) as scratch:
        listing = list_sources(sources, scratch, val_fraction, choices)
        _print_listing(listing, val_fraction)
        job = {"source_fingerprint": listing.fingerprint, "options": options}
        complete = _complete_splits(out, listing, job)
        if complete == set(listing.splits):
            print(f"{out} is complete: its {len(listing)} files, by names and sizes, were prepared before")
        else:
            _write_splits(out, listing, job, complete, default_workers(len(listing)) if workers is None else workers)


def show(sources: list[str], out: str | Path, val_fraction: float | None, choices: Choices) -> None:
    """Print what ``prepare`` would make. Raises DataError."""
    _check_place(sources, Path(out or tempfile.gettempdir()))
    with Scratch(out or tempfile.gettempdir()) as scratch:
        _print_listing(list_sources(sources, scratch, val_fraction, choices), val_fraction)


def _print_listing(listing: Listing, val_fraction: float | None) -> None:
    print("\n".join(describe(listing)))
    if "val" in listing.splits:
        return
    if val_fraction is None:
        print("no validation split: all images are for training (--val-fraction 0.1 holds a tenth of them out)")
    else:
        print("no image fell into the validation split: there are too few for this --val-fraction")


def _complete_splits(out: Path, listing: Listing, job: dict[str, Any]) -> set[str]:
    """The splits that are finished. Raises DataError if one was made from something else."""
    complete = set()
    for split in ("train", "val"):
        try:
            dataset = RecordDataset(out / f"{split}_lmdb")
        except DataError:  # not there or not finished
            continue
        _check_same_job(out, dataset.metadata, job)
        if split in listing.splits:
            complete.add(split)
    return complete


def _check_same_job(out: Path, before: dict[str, Any], job: dict[str, Any]) -> None:
    if before.get("options") != job["options"]:
        raise DataError(f"{out} was begun with other options ({before.get('options')}): use them, or another folder")
    if before.get("source_fingerprint") != job["source_fingerprint"]:
        raise DataError(f"the sources have changed since {out} was begun: delete it or choose another folder")


def _check_place(sources: list[str], out: Path) -> None:
    inside = next((s for s in sources if Path(s).is_dir() and Path(s).resolve() in (out / "x").resolve().parents), None)
    if inside and inside != "sample":
        raise DataError(f"{out} lies inside the source {inside}: choose a folder outside")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, not a folder")


# --------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------


def _write_splits(out: Path, listing: Listing, job: dict[str, Any], complete: set[str], workers: int) -> None:
    """Write every split that is not complete; the report; and last, mark the splits as complete."""
    with ExitStack() as stack:
        writers: dict[str, RecordWriter] = {}
        for split in listing.splits:
            if split not in complete:
                writer = RecordWriter(out / f"{split}_lmdb", job["options"]["layout"], job)
                writers[split] = stack.enter_context(writer)
                _check_same_job(out, writer.job, job)
        for split, writer in writers.items():
            _write_records(writer, split, listing.splits[split], job["options"], workers)
        if not complete:  # else it was written before the first split was marked
            _write_report(out, listing, job, writers)
        for split, writer in writers.items():
            writer.finish(listing.classes, split=split, files=len(listing.splits[split]), **job)
            print(f"{out / f'{split}_lmdb'}: {writer.progress['count']} records")


def _write_records(
    writer: RecordWriter, split: str, entries: Sequence[Entry], options: dict[str, Any], workers: int
) -> None:
    start = writer.progress["position"]
    chunks = (entries[i : i + CHUNK] for i in range(start, len(entries), CHUNK))
    check = partial(check_entries, resize=options["resize"], image_format=options["format"])
    records: list[Record] = []
    skipped: list[dict[str, str]] = []
    position = start
    with tqdm(total=len(entries), initial=start, desc=split, unit=" images") as bar:
        for results in ordered_results(check, chunks, workers):
            records += [result for result in results if isinstance(result, Record)]
            skipped += [result for result in results if not isinstance(result, Record)]
            position += len(results)
            bar.update(len(results))
            if len(records) >= COMMIT_IMAGES or sum(len(record.image) for record in records) >= COMMIT_BYTES:
                writer.append(records, position, skipped)
                records, skipped = [], []
    if position > writer.progress["position"]:
        writer.append(records, position, skipped)


def check_entries(
    entries: list[Entry], resize: int | None = None, image_format: str | None = None
) -> list[Record | dict[str, str]]:
    """Read and decode images: a record each, or the name and the reason of one that is skipped."""
    return [_check_entry(entry, resize, image_format) for entry in entries]


def _check_entry(entry: Entry, resize: int | None, image_format: str | None) -> Record | dict[str, str]:
    try:
        content = source_files.read(entry.place)
        image = image_files.open_image(content)
        suffix = image_files.suffix_of(image)
        if resize is not None or image_format is not None:
            content = image_files.reencode(image, content, resize, image_format)
    except (source_files.CorruptFile, image_files.NotAnImage) as error:
        return {"name": entry.name, "reason": str(error)}
    name = entry.name
    if entry.place[0] == "parquet" and not PurePosixPath(name).suffix:
        name += suffix
    return Record(content, entry.label, name)


def _write_report(out: Path, listing: Listing, job: dict[str, Any], writers: dict[str, RecordWriter]) -> None:
    """Write report.json and warn of skipped files. Raises DataError if they are too many."""
    skipped = [{"split": split, **entry} for split, writer in writers.items() for entry in writer.skipped()]
    report = {
        **job,
        "source_fingerprint_covers": FINGERPRINT_COVERS,
        "splits": {
            split: {"files": len(listing.splits[split]), "records": writer.progress["count"]}
            for split, writer in writers.items()
        },
        "skipped": skipped,
        "ignored": listing.ignored,
        "left_out_test_images": listing.left_out,
    }
    path = out / "report.json"
    try:
        with replacing(path) as part:
            part.write_text(json.dumps(report, indent=1), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
    if not skipped:
        return
    first = f"{skipped[0]['name']}: {skipped[0]['reason']}"
    what = "files are corrupt, unreadable or no images"
    summary = f"{len(skipped)} of {len(listing)} {what}, listed in {path} (first: {first})"
    if len(skipped) > MAX_SKIPPED * len(listing):
        raise DataError(
            f"{summary}; more than {MAX_SKIPPED:.0%} is an error: mend or remove them, then use a new folder"
        )
    print(f"warning: skipped {summary}", file=sys.stderr)
