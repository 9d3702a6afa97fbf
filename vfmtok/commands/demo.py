"""`vfmtok demo FOLDER` or `vfmtok demo --vq-ckpt RUN --gpt RUN`: a web page to try tokenizers and generators."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from vfmtok import distributed
from vfmtok.commands.models import add_models
from vfmtok.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve a web page to try a tokenizer and a generator, or all that folders hold (a quickstart's, a study's, any "
        "with runs in them): every generator, with the tokenizer that it learned from. Classes become images "
        "(guidance, seed and the generator's other settings), an image becomes tokens and is decoded again, with the "
        "points that its tokens read where they have such, and tokens of two images are mixed. Without a generator "
        "nothing is sampled. For example: `vfmtok demo quickstart`, then open http://127.0.0.1:7860."
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="with runs or saved models, instead of --vq-ckpt")
    add_models(parser, needs_generator=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--share", action="store_true", help="a public link through Gradio's servers (off by default)")


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C. Raises VFMTokError."""
    for flag, value in (("--gpt-model", args.gpt_model), ("--num-classes", args.num_classes)):
        if args.gpt is None and not args.folders and value is not None:
            raise ConfigError(f"{flag} belongs to --gpt")
    if args.folders and (named := _flags_of_models(args)):
        raise ConfigError(f"a folder's runs know their models: leave out {named[0]}, or the folder")
    if not 0 < args.port < 2**16:
        raise ConfigError(f"--port must be in [1,65535], got {args.port}")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is reported
    try:
        from vfmtok.demo import page
    except ImportError as error:
        if error.name != "gradio":
            raise
        raise ConfigError("the demo needs Gradio: pip install 'vfmtok[demo]'") from None
    from vfmtok.demo.studio import write_examples

    with distributed.group() as world, tempfile.TemporaryDirectory() as folder:
        if world.size > 1:
            raise ConfigError("`vfmtok demo` runs in one process")
        built = page.build_all(open_studios(args, world), write_examples(Path(folder)))
        try:
            built.launch(
                server_name=args.host, server_port=args.port, share=args.share, theme=page.THEME, css=page.CSS,
                footer_links=[],
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"cannot listen at {args.host}:{args.port}: {error}") from None


def _flags_of_models(args: argparse.Namespace) -> list[str]:
    """Those of ``add_models`` that were given."""
    models = argparse.ArgumentParser(add_help=False)
    add_models(models, needs_generator=False)
    return [a.option_strings[0] for a in models._actions if getattr(args, a.dest) != a.default]


def open_studios(args: argparse.Namespace, world: distributed.World) -> dict[str, Any]:
    """By its name what the folders hold, or the models named by flags. Raises VFMTokError."""
    from vfmtok.commands.models import open_models, open_tokenizer
    from vfmtok.demo.studio import Studio
    from vfmtok.demo.systems import open_systems

    if args.folders:
        return open_systems(args.folders, world.device)
    if args.gpt is None:
        studio = Studio(open_tokenizer(args, world.device), None, None)
    else:
        studio = Studio(*open_models(args, world.device))
    return {Path(args.vq_ckpt).name + (f" and {Path(args.gpt).name}" if args.gpt else ""): studio}
