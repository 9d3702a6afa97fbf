"""`vfmtok report FOLDER`: what scripts/quickstart.sh left in a folder, as one self-contained HTML page."""

import argparse
from pathlib import Path

from vfmtok.errors import ConfigError
from vfmtok.files import replace_file
from vfmtok.pictures.report import build_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Gather what scripts/quickstart.sh left in FOLDER in one page, FOLDER/report.html."
    parser.add_argument("folder", metavar="FOLDER", help="the quickstart's folder")
    parser.add_argument("--out", metavar="FILE", help="the page (default FOLDER/report.html)")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    folder = Path(args.folder).expanduser()
    out = Path(args.out).expanduser() if args.out else folder / "report.html"
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder}: run scripts/quickstart.sh first")
    page = build_page(folder).encode()
    replace_file(out, lambda file: file.write(page))
    print(f"report: {out} ({len(page) / 1e6:.1f} MB, opens in any browser)")
