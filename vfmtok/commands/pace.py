"""`vfmtok pace RECIPE ...`: how long trainings take on this machine, and shorter ones that fit a number of minutes."""

import argparse
import tempfile
from pathlib import Path

from vfmtok.commands import flags
from vfmtok.commands.study import PARSERS, open_data
from vfmtok.files import write_json
from vfmtok.study.budget import Forecast, forecast
from vfmtok.study.config import RowConfig, StudyConfig
from vfmtok.study.rows import Changes, resolve
from vfmtok.study.running import Runner
from vfmtok.study.speed import Speed, as_time, estimate, measure
from vfmtok.study.steps import Asked, Plan, Step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run each training for a few steps and print how long all of it takes on this machine, the evaluation of the "
        "tokenizers and of the generator's samples included. With --minutes also the settings of shorter trainings "
        "that take so long together."
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="of tokenizers, the stages of one for instance")
    parser.add_argument("--generator", metavar="RECIPE", help="of a generator, which learns the last tokenizer's codes")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="images, made by `vfmtok prepare`")
    parser.add_argument("--minutes", type=flags.positive, metavar="N", help="shorten the trainings to fit into them")
    parser.add_argument("--views", default="shift", help="of the generator's codes (default: shift)")
    parser.add_argument(
        "--cfg-scales", nargs="+", default=["1", "2"], metavar="S", help="of samples that are measured (default: 1 2)"
    )
    parser.add_argument("--steps", type=flags.positive, metavar="N", help="in which latents are sampled")
    for section in ("tokenizer", "generator"):
        parser.add_argument(
            f"--{section}-set", action="append", default=[], metavar="KEY=VALUE", help=f"change the {section}'s recipe"
        )
    parser.add_argument("--out", metavar="FILE", help="write what was found as JSON, for scripts")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    with tempfile.TemporaryDirectory(prefix="vfmtok-pace-") as folder:
        found = _forecast(args, Path(folder))
    for training in found.trainings:
        made = " ".join(f"--set {setting}" for setting in training["set"])
        print(f"  {training['kind']}: {training['steps']:,} steps{made and ', shortened by '}{made}")
    if found.share < 1:
        print(f"trainings at {found.share:.0%} of their steps fit into {args.minutes} minutes")
    print(f"about {as_time(found.seconds)} on this machine")
    if args.out:
        write_json(Path(args.out).expanduser(), found.as_json())


def _forecast(args: argparse.Namespace, folder: Path) -> Forecast:
    steps = f" --steps {args.steps}" if args.steps else ""
    study = StudyConfig(
        data=args.data,
        tokenizer=args.recipes[0],
        codes=f"--views {args.views}",
        reconstruction="--no-fid --no-lpips",
        agreement=f"--cfg-scales {' '.join(args.cfg_scales)}{steps}" if args.generator else None,
        rows=tuple(
            RowConfig(name=recipe, tokenizer=recipe, generator=args.generator if recipe == args.recipes[-1] else None)
            for recipe in args.recipes
        ),
    )
    rows = resolve(study, PARSERS, Changes(tuple(args.tokenizer_set), tuple(args.generator_set)))
    data = open_data(study.data, folder)
    plan = Plan(study, rows, data, folder, Asked("vfmtok pace", (), Changes()))
    runner = Runner(plan, say=lambda text: print(text, flush=True))
    measured: dict[str, Speed] = {}

    def speed(step: Step) -> Speed:
        if step.pace not in measured:
            measured[step.pace] = measure(step, runner)
        return measured[step.pace]

    return forecast(plan.steps, lambda step: estimate(step, speed, data, PARSERS), speed, data, args.minutes)
