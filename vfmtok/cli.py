"""`vfmtok <command>`: each command is a module with ``add_arguments(parser)`` and ``run(args)``."""

import argparse
import importlib
import sys

from vfmtok import __version__
from vfmtok.errors import VFMTokError

COMMANDS = {
    "prepare": "vfmtok.data.prepare",
    "stats": "vfmtok.data.stats",
    "codes": "vfmtok.data.codes",
}
SUMMARIES = {  # shown by --help without importing the modules
    "prepare": "images from folders, archives or shards to LMDB records, and back",
    "stats": "counts, sizes, formats, labels and a contact sheet of a dataset",
    "codes": "token ids of a dataset, computed once and kept in one array",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 2 for an error the user can mend, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be printable
            stream.reconfigure(errors="backslashreplace")
    command = arguments[0] if arguments and arguments[0] in COMMANDS else None
    parser = _parser(command)
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except VFMTokError as error:
        print(f"vfmtok {command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vfmtok {command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser(command: str | None) -> argparse.ArgumentParser:
    """The parser; only the module of ``command`` is imported."""
    parser = argparse.ArgumentParser(prog="vfmtok", description="Image tokenizers on frozen vision foundation models.")
    parser.add_argument("--version", action="version", version=f"vfmtok {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module_name in COMMANDS.items():
        subparser = commands.add_parser(name, help=SUMMARIES[name])
        if name == command:
            module = importlib.import_module(module_name)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser
