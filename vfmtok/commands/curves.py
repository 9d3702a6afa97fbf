"""`vfmtok curves RUN... --out curves.png`: the curves of runs over each other.

The first run is drawn in colour, the others in greys behind it: name a reference log last to see a new run against it.
"""

import argparse
from pathlib import Path

from vfmtok.pictures.curves import draw_curves, read_log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__.split("\n\n")[1].replace("\n", " ")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a log.jsonl")
    parser.add_argument("--out", default="curves.png", help="the picture (default curves.png)")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    draw_curves({name: read_log(Path(name).expanduser()) for name in args.runs}, Path(args.out).expanduser())
    print(args.out)
