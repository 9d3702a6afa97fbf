"""`vfmtok <command>`: each command is a module with ``add_arguments(parser)`` and ``run(args)``."""

import argparse
import contextlib
import importlib
import os
import sys
from types import ModuleType
from typing import NoReturn

from vfmtok import __version__, waiting
from vfmtok.commands.parser import OneLineParser
from vfmtok.errors import VFMTokError, is_printed_here

COMMANDS = {
    "prepare": "vfmtok.commands.prepare",
    "stats": "vfmtok.commands.stats",
    "measure": "vfmtok.commands.measure",
    "codes": "vfmtok.commands.codes",
    "import-codes": "vfmtok.commands.import_codes",
    "export-codes": "vfmtok.commands.export_codes",
    "import-recipe": "vfmtok.commands.import_recipe",
    "decode": "vfmtok.commands.decode",
    "sample": "vfmtok.commands.sample",
    "inpaint": "vfmtok.commands.inpaint",
    "style": "vfmtok.commands.style",
    "export": "vfmtok.commands.export",
    "curves": "vfmtok.commands.curves",
    "agreement": "vfmtok.commands.agreement",
    "alignment": "vfmtok.commands.alignment",
    "report": "vfmtok.commands.report",
    "study": "vfmtok.commands.study",
    "info": "vfmtok.commands.info",
    "pace": "vfmtok.commands.pace",
    "demo": "vfmtok.commands.demo",
    "reconstruct": "vfmtok.commands.reconstruct",
    "download": "vfmtok.commands.download",
    "reproduce": "vfmtok.commands.reproduce",
}
SUMMARIES = {  # shown by --help without importing the modules
    "prepare": "images from folders, archives or shards to LMDB records, and back",
    "sample": "images of classes from a generator, as one picture",
    "inpaint": "a part of an image kept, the rest drawn by a generator, as one picture",
    "style": "an image in the style of another, by a tokenizer with holistic tokens, as one picture",
    "stats": "counts, labels and a contact sheet of a dataset; with --reference, the statistics that FID compares with",
    "measure": "FID, sFID, IS, precision, recall and KID of samples that are there, by any program",
    "curves": "the curves of training runs over each other, as a picture",
    "agreement": "whether generated images look like their classes, by a linear probe on the frozen encoder",
    "alignment": "how alike the features of tokenizers, foundation models and generators are: CKNNA and SE-CKNNA",
    "report": "what scripts/quickstart.sh left in a folder, as one HTML page",
    "study": "the rows of a table, such as the paper's ablations: trained, measured and compared, as one page",
    "export": "a run's tokenizer or generator: one file under the released names, or a folder with a card",
    "reconstruct": "images beside their reconstructions, with their ids; and ids back to images",
    "demo": "a web page: sample classes, see an image's tokens, mix the tokens of two images",
    "info": "parameters, FLOPs and memory of a model, from its configuration alone",
    "pace": "how long trainings take on this machine, and shorter ones that fit a number of minutes",
    "codes": "token ids or latents of a dataset, computed once and kept in one array",
    "import-codes": "codes of other programs (LlamaGen's ids, LightningDiT's and REG's latents) as one such array",
    "decode": "a cache, or shards of latents, as images and labels in one npz",
    "import-recipe": "a configuration of LightningDiT's program as a recipe of train_c2i.py",
    "export-codes": "latents as LightningDiT's and REG's programs read them",
    "download": "published weights, or anyone's, into the cache or a folder, checked",
    "reproduce": "a published number, measured again: passed or failed",
}
WITHOUT_PYTORCH = {"prepare", "import-recipe", "download"}


def program() -> NoReturn:
    """`vfmtok` on a command line: the process ends with the exit code of ``main``."""
    if sys.argv[1:] and sys.argv[1] in COMMANDS.keys() - WITHOUT_PYTORCH and not {"-h", "--help"} & set(sys.argv):
        waiting.choose(f"vfmtok {sys.argv[1]}")  # before a command loads PyTorch
    code = main()
    if "WORLD_SIZE" in os.environ:  # torchrun started it; alone, most commands need no torch
        from vfmtok import distributed

        distributed.leave(code)
    raise SystemExit(code)


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 2 for an error the user can mend, 130 for Ctrl-C.

    Options may stand anywhere, also between a command's positional arguments.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be printable
            stream.reconfigure(errors="backslashreplace")
    command = arguments[0] if arguments and arguments[0] in COMMANDS else None
    if command is None:
        parser = _parser()
        parser.parse_args(arguments)  # exits: --help, --version or what is wrong
        parser.error("name the command first")
    module = importlib.import_module(COMMANDS[command])
    parser = OneLineParser(prog=f"vfmtok {command}")
    module.add_arguments(parser)
    args = parser.parse_intermixed_args(arguments[1:])
    try:
        code = _run(command, module, args)
        if sys.stdout is not None:  # it was closed before we started
            sys.stdout.flush()
    except OSError:
        error = _output_error()
        if error is None:
            raise
        print(f"vfmtok {command}: error: cannot print the output: {error.strerror}", file=sys.stderr)
        return 2
    return code


def _run(command: str, module: ModuleType, args: argparse.Namespace) -> int:
    try:
        module.run(args)
    except VFMTokError as error:
        if is_printed_here(error):
            print(f"vfmtok {command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vfmtok {command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _output_error() -> OSError | None:
    """What is wrong with the standard output, such as a full disk or a reader that left, or None.

    An OSError does not say which file it is about, so an empty line is tried. What is left in the buffer is
    then sent nowhere, as Python would try, and complain, once more at its end.
    """
    try:
        print(flush=True)
        return None
    except OSError as error:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error


def _parser() -> argparse.ArgumentParser:
    """The parser of everything before a command is known; it imports none of them."""
    parser = OneLineParser(
        prog="vfmtok",
        description="Image tokenizers on frozen vision foundation models, and generators of their codes.",
        epilog="Trainings and evaluations are scripts of the checkout, which torchrun starts on several GPUs: python "
        "vq_train.py (tokenizers), train_c2i.py (generators), vqgan_test.py and test_net.py, each with --help.",
    )
    parser.add_argument("--version", action="version", version=f"vfmtok {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        commands.add_parser(name, help=SUMMARIES[name])
    return parser
