"""`vfmtok study FILE`: every row of a table trained, measured and compared, ending in one page."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from vfmtok.commands import agreement, codes, flags
from vfmtok.commands.evaluation_flags import generation_parser, reconstruction_parser
from vfmtok.commands.parser import OneLineParser
from vfmtok.data.dataset_folder import open_split
from vfmtok.errors import ConfigError, DataError, VFMTokError, WeightsError
from vfmtok.files import replace_file
from vfmtok.study import numbers, page
from vfmtok.study.claims import claim
from vfmtok.study.config import load_study
from vfmtok.study.keeping import keep
from vfmtok.study.rows import Changes, resolve
from vfmtok.study.running import WAIT, Runner, last_line, run_process, write_configs
from vfmtok.study.speed import as_time, estimate, measured_by
from vfmtok.study.steps import Asked, Data, Plan, Step

SAMPLE = "sample"  # in place of a folder: the images in the package


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train, measure and compare all rows of a study, such as configs/studies/small/table4.yaml. First all rows are "
        "checked; then it prints what it will do and about how long that takes here. Steps that rows share are done "
        "once. The same command again continues, whatever ended it. Several such commands, on one machine or many, may "
        "work in one folder, each on other rows or all on the same. It ends in FOLDER/study.html, table.json, table.md."
    )
    parser.add_argument("study", metavar="FILE", help="a study, such as configs/studies/small/table4.yaml")
    parser.add_argument("--out", metavar="FOLDER", help="its folder (default: studies/ and the file's name)")
    parser.add_argument("--data", metavar="FOLDER", help="images, made by `vfmtok prepare`, instead of the study's")
    parser.add_argument(
        "--row", action="append", default=[], metavar="ROW", help="do this row only, by name or number (several times)"
    )
    parser.add_argument("--dry-run", action="store_true", help="stop after printing what would be done, and how long")
    parser.add_argument("--page-only", action="store_true", help="write the page of what is there, and do nothing else")
    parser.add_argument(
        "--keep", metavar="FOLDER", help="copy page, table, pictures, logs and results to FOLDER, as for a repository"
    )
    parser.add_argument(
        "--processes",
        type=flags.positive,
        metavar="N",
        help="per step, by torchrun (default: one for each GPU, or one)",
    )
    flags.add_set(parser, text="change the study: seeds=[0,1,2]")
    add_changes(parser, " in all rows")


def add_changes(parser: argparse.ArgumentParser, where: str = "") -> None:
    """--tokenizer-set and --generator-set."""
    for section in ("tokenizer", "generator"):
        parser.add_argument(
            f"--{section}-set", action="append", default=[], metavar="KEY=VALUE",
            help=f"change the {section}'s recipe{where}: optimizer.steps=400",
        )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("start `vfmtok study` once, not by torchrun: it starts that for every step (--processes)")
    file = Path(args.study).expanduser()
    study = _named(file.stem, lambda: load_study(file, args.set))
    asked = _asked(args)
    rows = _named(file.stem, lambda: resolve(study, PARSERS, asked.changes))
    chosen = {row.name for row in _named(file.stem, lambda: study.chosen(args.row))}
    folder = Path(args.out).expanduser() if args.out else Path("studies") / "-".join(file.with_suffix("").parts[-2:])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror}") from None
    data = open_data(args.data or study.data, folder)
    plan = _named(file.stem, lambda: Plan(study, rows, data, folder, asked))
    write_configs(plan)
    if not args.page_only:
        runner = Runner(plan, args.processes or max(1, torch.cuda.device_count()), _say)
        steps = plan.of_rows(chosen)
        _announce(file.stem, steps, runner)
        if args.dry_run:
            return
        try:
            runner.run(steps, after=lambda step: write_table(plan))
        except VFMTokError as error:
            raise type(error)(f"{file.stem}: {error}") from None
    _finish(plan, args.keep)


def _asked(args: argparse.Namespace) -> Asked:
    command = ["vfmtok", "study", args.study, *(["--data", args.data] if args.data else [])]
    for flag, said in (("set", args.set), ("tokenizer-set", args.tokenizer_set), ("generator-set", args.generator_set)):
        command += [word for text in said for word in (f"--{flag}", text)]
    changes = Changes(tuple(args.tokenizer_set), tuple(args.generator_set))
    return Asked(shlex.join(command), tuple(args.set), changes)


def open_data(path: str, folder: Path) -> Data:
    """Both splits of a prepared folder. Raises DataError."""
    place = _prepared_sample(folder) if path == SAMPLE else Path(path).expanduser()
    if not path or not place.exists():
        raise DataError(f"no images at {path or 'no path'}: give --data, a folder made by `vfmtok prepare`")
    train, val = (open_split(place, split) for split in ("train", "val"))
    if train.fingerprint == val.fingerprint:
        raise DataError(f"{place} needs a training and a validation split")
    classes = train.classes
    if classes is None:
        raise DataError(f"{train.path} does not name its classes: prepare it from class folders")
    return Data(place, len(train), len(val), (train.fingerprint, val.fingerprint), len(classes))


def _prepared_sample(folder: Path) -> Path:
    """The sample set, prepared in the study's folder by the first process that comes. Raises VFMTokError."""
    place, log = folder / "data", folder / "prepare.txt"
    done = folder / "prepared"
    while not done.exists():
        claimed = claim(folder)
        if claimed is None:
            time.sleep(WAIT)  # for another process that prepares it
            continue
        try:
            with open(log, "wb") as file:
                code = run_process([sys.executable, "-m", "vfmtok", "prepare", SAMPLE, str(place)], file, claimed)
            if code:
                raise DataError(f"cannot prepare the sample set: {last_line(log)}")
            done.touch()
        except OSError as error:
            raise DataError(f"cannot write {folder}: {error.strerror or error}") from None
        finally:
            claimed.release()
    return place


# --------------------------------------------------------------------------------------
# What it says
# --------------------------------------------------------------------------------------


def _announce(name: str, steps: list[Step], runner: Runner) -> None:
    """What will be done, and about how long it takes. Raises VFMTokError: a training can't be run here."""
    left = [step for step in steps if not step.done]
    data, speed = runner.plan.data, measured_by(runner)
    seeds = ", ".join(map(str, runner.plan.study.seeds))
    images = f"{data.train:,} + {data.val:,} images of {data.path}"
    print(f"study {name}: {len(runner.plan.rows)} rows, seeds {seeds}, {images}")
    print(f"{len(steps) - len(left)} of {len(steps)} steps are done", flush=True)
    times = {step.key: estimate(step, speed, data, PARSERS) for step in left}
    width = max(len(step.folder.name) for step in steps)
    for step in steps:
        state = "done" if step.done else f"about {as_time(times[step.key])}"
        print(f"  {step.folder.name:<{width}}  {state:<14}  {step.for_people()}")
    known = [seconds for seconds in times.values() if seconds is not None]
    if left:
        unknown = f", and {len(left) - len(known)} steps of unknown time" if len(known) < len(left) else ""
        print(f"to do: {len(left)} steps, about {as_time(sum(known))} on this machine, if nobody helps{unknown}")
    for row in runner.plan.rows:
        of_row = [times[s.key] or 0 for s in left if any(served == row.name for served, _ in s.needed_by)]
        if of_row:
            print(f"  {row.name}: {len(of_row)} steps, about {as_time(sum(of_row))}, those it shares included")
    sys.stdout.flush()


def write_table(plan: Plan) -> numbers.Table:
    """table.json and table.md, of what there is so far. Raises VFMTokError."""
    table = numbers.gather(plan)
    replace_file(plan.folder / "table.json", lambda file: file.write(numbers.dump(table).encode()), shared=True)
    replace_file(plan.folder / "table.md", lambda file: file.write(table.as_markdown().encode()), shared=True)
    return table


def _finish(plan: Plan, kept: str | None) -> None:
    table = write_table(plan)
    pictures = page.draw_pictures(plan)
    content = page.build_page(plan, table, pictures).encode()
    out = plan.folder / "study.html"
    replace_file(out, lambda file: file.write(content), shared=True)
    for name, (_, sheet) in pictures.items():
        replace_file(plan.folder / f"{name}.png", lambda file, sheet=sheet: sheet.save(file, "png"), shared=True)
    print(table.as_markdown(), end="")
    beside = ", ".join(("table.json", *(f"{name}.png" for name in pictures)))
    print(f"study: {out} ({len(content) / 1e6:.1f} MB, opens in any browser), {beside} and table.md beside it")
    if kept is not None:
        place = Path(kept).expanduser()
        print(f"kept: {keep(plan, pictures, place)} logs and results in {place / 'logs'}, and the page beside them")


def _say(text: str) -> None:
    print(text, flush=True)


def _named(name: str, make: Callable):
    """What ``make`` makes. Its ConfigError or WeightsError names the study."""
    try:
        return make()
    except (ConfigError, WeightsError) as error:
        raise type(error)(f"study {name}: {error}") from None


def _command(module: ModuleType) -> Callable[[], argparse.ArgumentParser]:
    def parser() -> argparse.ArgumentParser:
        made = OneLineParser()
        module.add_arguments(made)
        return made

    return parser


PARSERS = {
    "codes": _command(codes),
    "held_out_codes": _command(codes),
    "reconstruction": reconstruction_parser,
    "agreement": _command(agreement),
    "generation": generation_parser,
}
