"""`vfmtok pace RECIPE ...`: how long trainings take on this machine, and shorter ones that fit a number of minutes."""

import argparse
import tempfile
import time
from pathlib import Path

from vfmtok.commands import flags
from vfmtok.commands.study import PARSERS, add_changes, open_data
from vfmtok.files import write_json
from vfmtok.study.budget import Forecast, forecast
from vfmtok.study.config import RowConfig, StudyConfig
from vfmtok.study.rows import Changes, resolve
from vfmtok.study.running import Runner
from vfmtok.study.speed import as_time, estimate, measured_by
from vfmtok.study.steps import Asked, Plan

# A later stage is measured without the weights of the one before, which are not there yet: they change no speed.
ALONE = ("run.start_from=null", "adversarial.start_from=null")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run each training for a few steps and print how long all of it takes on this machine, the evaluation of the "
        "tokenizers and of the generator's samples included. With --minutes also the settings of shorter trainings "
        "so that all of it takes that long."
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="of tokenizers, the stages of one for instance")
    parser.add_argument("--generator", metavar="RECIPE", help="of a generator, which learns the last tokenizer's codes")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="images, made by `vfmtok prepare`")
    parser.add_argument(
        "--minutes",
        type=flags.positive,
        metavar="N",
        help="shorten the trainings so that all of it takes about N minutes",
    )
    parser.add_argument(
        "--views", default="shift", help="of the generator's codes, as of `vfmtok codes` (default: shift)"
    )
    parser.add_argument(
        "--cfg-scales",
        nargs="+",
        default=["1", "2"],
        metavar="S",
        help="of samples that are measured, as of `vfmtok agreement` (default: 1 2)",
    )
    parser.add_argument("--steps", type=flags.positive, metavar="N", help="sampling steps of a generator of latents")
    add_changes(parser)
    parser.add_argument("--out", metavar="FILE", help="write what was found as JSON, for scripts")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vfmtok-pace-") as folder:
        found = _forecast(args, Path(folder), begun)
    for training in found.trainings:
        made = " ".join(f"--set {setting}" for setting in training["set"])
        print(f"  {training['kind']}: {training['steps']:,} steps{made and ', shortened by '}{made}")
    if found.share < 1:
        print(f"trainings at {found.share:.0%} of their steps fit into {args.minutes} minutes")
    print(f"about {as_time(found.seconds)} on this machine")
    if args.out:
        write_json(Path(args.out).expanduser(), found.as_json())


def _row(recipe: str, args: argparse.Namespace) -> RowConfig:
    """Of a tokenizer; the last one's has the generator."""
    generator = args.generator if recipe == args.recipes[-1] else None
    return RowConfig(
        name=recipe if generator is None else f"{recipe} + {generator}",
        tokenizer=recipe,
        tokenizer_set=() if recipe == args.recipes[0] else ALONE,
        generator=generator,
    )


def _forecast(args: argparse.Namespace, folder: Path, begun: float) -> Forecast:
    """``begun``: when the command was; the minutes count from there."""
    steps = f" --steps {args.steps}" if args.steps else ""
    study = StudyConfig(
        data=args.data,
        tokenizer=args.recipes[0],
        codes=f"--views {args.views}",
        reconstruction="--no-fid --no-lpips",
        agreement=f"--cfg-scales {' '.join(args.cfg_scales)}{steps}" if args.generator else None,
        rows=tuple(_row(recipe, args) for recipe in args.recipes),
    )
    rows = resolve(study, PARSERS, Changes(tuple(args.tokenizer_set), tuple(args.generator_set)))
    data = open_data(study.data, folder)
    plan = Plan(study, rows, data, folder, Asked("vfmtok pace", (), Changes()))
    runner = Runner(plan, say=lambda text: print(text, flush=True))
    speed = measured_by(runner)
    for step in plan.steps:
        if step.is_training:
            speed(step)
    left = None if args.minutes is None else args.minutes - (time.monotonic() - begun) / 60
    return forecast(plan.steps, lambda step: estimate(step, speed, data, PARSERS), speed, data, left)
