"""`vfmtok curves RUN... --out curves.png`: the curves of runs over each other."""

import argparse
from pathlib import Path

from vfmtok.pictures.curves import draw_curves, read_log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Draw the curves of runs over each other. The first is in colour, the others in greys behind it: name a "
        "reference log last to see a new run against it."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a log.jsonl")
    parser.add_argument("--out", default="curves.png", help="the picture (default curves.png)")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    draw_curves({name: read_log(Path(name).expanduser()) for name in args.runs}, Path(args.out).expanduser())
    print(args.out)
