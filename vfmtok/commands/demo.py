"""`vfmtok demo --vq-ckpt RUN --gpt RUN`: a web page to try a tokenizer and a generator."""

import argparse
import os
import tempfile
from pathlib import Path

from vfmtok import distributed
from vfmtok.commands.models import add_models
from vfmtok.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve a web page to try a tokenizer and a generator. Classes become images (guidance, seed and the "
        "generator's other settings), an image becomes tokens and is decoded again, with the points that its tokens "
        "read where they have such, and tokens of two images are mixed. Without --gpt nothing is sampled. For example: "
        "`vfmtok demo --vq-ckpt results/emoji64 --gpt results/emoji64_gpt`, then open http://127.0.0.1:7860."
    )
    add_models(parser, needs_generator=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--share", action="store_true", help="a public link through Gradio's servers (off by default)")


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C. Raises VFMTokError."""
    for flag, value in (("--gpt-model", args.gpt_model), ("--num-classes", args.num_classes)):
        if args.gpt is None and value is not None:
            raise ConfigError(f"{flag} belongs to --gpt")
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
        studio = open_studio(args, world)
        title = f"VFMTok: {Path(args.vq_ckpt).name}" + (f" and {Path(args.gpt).name}" if args.gpt else "")
        built = page.build(studio, write_examples(Path(folder)), title)
        try:
            built.launch(
                server_name=args.host, server_port=args.port, share=args.share, theme=page.THEME, css=page.CSS,
                footer_links=[],
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"cannot listen at {args.host}:{args.port}: {error}") from None


def open_studio(args: argparse.Namespace, world: distributed.World):
    """The models named by ``args``. Raises VFMTokError."""
    from vfmtok.commands.models import open_models, open_tokenizer
    from vfmtok.demo.studio import Studio

    if args.gpt is None:
        return Studio(open_tokenizer(args, world.device), None, None)
    return Studio(*open_models(args, world.device))
