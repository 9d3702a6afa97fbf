"""Flags that several commands have, each declared here and nowhere else.

A flag of a training script is an alias of a field of its recipe: a row (flag, field, what it takes, help). A flag that
is not given changes nothing; ``--set section.field=value`` reaches every other field, with the same prefixes in every
command.
"""

import argparse
import typing
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from vfmtok.config import with_overrides
from vfmtok.errors import ConfigError
from vfmtok.training.schedule import shortened

Flags = tuple[tuple[str, str, Any, str], ...]
Parser = argparse.ArgumentParser | argparse._ArgumentGroup

# The scripts were published with names of their own for the same things; each of these is understood besides.
ALIASES = {
    "--vq-ckpt": ("--tokenizer", "--ae-ckpt"),
    "--transformer-config-file": ("--transformer-config", "--tokenizer-config"),
    "--gpt": ("--generator",),
    "--gpt-ckpt": ("--generator",),
    "--global-seed": ("--seed",),
    "--latent-stats": ("--stats-file",),
    "--output_dir": ("--output-dir", "--out"),
    "--sample-dir": ("--out",),
    "--results-dir": ("--out",),
    "--num_workers": ("--num-workers",),
}

TOKENIZER = (
    "--vq-ckpt",
    "the tokenizer: a run's folder, a checkpoint, released weights, or REPOSITORY[:PART] (see `vfmtok download`)",
)
# What every generator's published numbers are compared with.
ADM_REFERENCE = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
    "VIRTUAL_imagenet256_labeled.npz"
)
TOKENIZER_CONFIG = ("--transformer-config-file", "the tokenizer's configuration, for weights without their own")


def names(flag: str) -> tuple[str, ...]:
    """A flag and its other names."""
    return (flag, *ALIASES.get(flag, ()))


# --------------------------------------------------------------------------------------
# Flags that are fields of a recipe
# --------------------------------------------------------------------------------------


def choices(section: type, name: str) -> tuple[str, ...]:
    """What a field of the recipe may be, by its type: a new name is written there and nowhere else."""
    return typing.get_args(typing.get_type_hints(section)[name])


def add_flags(parser: argparse.ArgumentParser, flags: Flags) -> None:
    for flag, key, takes, text in flags:
        help_text = f"{text}{' ' if text else ''}[{key}]"
        if takes is bool:
            parser.add_argument(flag, dest=key, action=argparse.BooleanOptionalAction, default=None, help=help_text)
        elif isinstance(takes, tuple):
            parser.add_argument(*names(flag), dest=key, choices=takes, help=help_text)
        else:
            parser.add_argument(*names(flag), dest=key, type=takes, metavar=takes.__name__.upper(), help=help_text)


def given(args: argparse.Namespace, flags: Flags) -> dict[str, Any]:
    """key -> value of the flags on the command line."""
    return {key: value for _, key, _, _ in flags if (value := getattr(args, key)) is not None}


def add_model_flags(parser: Parser, rows: tuple[tuple[str, Any, str], ...]) -> None:
    """Published flags of a tokenizer, whose fields depend on its family; ``given_model_flags`` reads them."""
    for flag, takes, text in rows:
        if takes is bool:
            parser.add_argument(flag, dest=flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif isinstance(takes, tuple):
            parser.add_argument(flag, dest=flag, choices=takes, help=text)
        else:
            metavar = "N" if takes is positive else takes.__name__.upper()
            parser.add_argument(flag, dest=flag, type=takes, metavar=metavar, help=text)


def given_model_flags(args: argparse.Namespace, rows: tuple[tuple[str, Any, str], ...]) -> dict[str, Any]:
    """flag -> value of those on the command line."""
    return {flag: value for flag, *_ in rows if (value := getattr(args, flag, None)) is not None}


def add_recipe(parser: Parser, example: str) -> None:
    parser.add_argument("--recipe", metavar="YAML", help=f"settings of the whole run, such as {example}")


def add_betas(parser: Parser) -> None:
    for flag in ("--beta1", "--beta2"):
        parser.add_argument(flag, type=float, help="[optimizer.betas]")


def given_betas(args: argparse.Namespace, old: tuple[float, ...]) -> dict[str, Any]:
    """The field that ``add_betas`` sets, if it was given."""
    new = (args.beta1, args.beta2)
    if new == (None, None):
        return {}
    return {"optimizer.betas": [before if beta is None else beta for before, beta in zip(old, new, strict=True)]}


def add_steps(parser: Parser) -> None:
    """``args.steps``, of the training scripts; ``shorten`` reads it."""
    parser.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="shorten the recipe's run to N steps, and with it every time that it names (the warm-up's end, ...)",
    )


def shorten(args: argparse.Namespace, recipe: Any, said: Collection[str]) -> Any:
    """``recipe`` with what ``add_steps`` sets, if it was given; fields of which a flag or --set has ``said`` something,
    or something of a section that they are in, stay. Raises ConfigError for a recipe of another length."""
    if args.steps is None:
        return recipe
    if "optimizer.steps" in said:
        raise ConfigError("--steps and --set optimizer.steps say the same: give one of them")
    if recipe.optimizer.steps is None:
        raise ConfigError(
            f"--steps shortens a recipe that counts steps; this one makes {recipe.optimizer.epochs:g} epochs (--epochs)"
        )
    if args.steps > recipe.optimizer.steps:
        raise ConfigError(f"--steps {args.steps}: the recipe has {recipe.optimizer.steps} (--set optimizer.steps)")
    settings = shortened(recipe, args.steps, recipe.optimizer.steps)
    stay = {path for path in settings if any(f"{path}.".startswith(f"{key}.") for key in said)} - {"optimizer.steps"}
    return with_overrides(recipe, (), {path: value for path, value in settings.items() if path not in stay})


def add_weights_to_start_from(parser: Parser, flag: str) -> None:
    """``flag`` and ``--finetune``, of the training scripts."""
    parser.add_argument(
        *names(flag), metavar="PATH", help="a checkpoint to continue from, or to begin with (--finetune)"
    )
    parser.add_argument(
        "--finetune", action="store_true", help=f"take only weights from {flag}, ours or released, all that fit"
    )


# --------------------------------------------------------------------------------------
# Models
# --------------------------------------------------------------------------------------


def add_tokenizer(parser: Parser, required: bool = True) -> None:
    """``args.vq_ckpt`` and ``args.tokenizer_config``: see ``pretrained.loading.load_tokenizer``."""
    parser.add_argument(*names(TOKENIZER[0]), required=required, metavar="PATH", help=TOKENIZER[1])
    add_tokenizer_config(parser)


def add_tokenizer_config(parser: Parser) -> None:
    flag, text = TOKENIZER_CONFIG
    parser.add_argument(*names(flag), dest="tokenizer_config", metavar="YAML", help=text)


def add_generator(parser: Parser, flag: str = "--gpt", required: bool = True) -> None:
    text = "the generator: a run's folder, a checkpoint, released weights, or REPOSITORY:PART, with its tokenizer"
    parser.add_argument(*names(flag), required=required, metavar="PATH", help=text)


def add_generator_facts(parser: Parser) -> None:
    """``args.gpt_model``, ``args.num_classes`` and ``args.latent_stats``: what files of weights do not tell, or tell by
    their shapes. And ``args.guidance_ckpt`` and ``args.guidance_model``, of a weaker generator that guides."""
    from vfmtok.generators import GENERATORS

    add_size(parser, "the generator's size, of released weights; a run knows its own")
    parser.add_argument("--num-classes", type=positive, metavar="N", help="default: as many as the weights have")
    text = "of released weights: mean and standard deviation of the latents that the generator learned"
    parser.add_argument(*names("--latent-stats"), metavar="FILE", help=text)
    text = "of latents: autoguidance by this weaker generator, in the place of CFG; --cfg-scale says how strongly"
    parser.add_argument("--guidance-ckpt", metavar="PATH", help=text)
    sizes = [name for family in GENERATORS.values() for name in family.sizes]
    parser.add_argument("--guidance-model", choices=sizes, metavar="SIZE", help="its size, of released weights")


def add_size(parser: Parser, text: str) -> None:
    """``args.gpt_model``: a named size of any family."""
    from vfmtok.generators import GENERATORS

    sizes = [name for family in GENERATORS.values() for name in family.sizes]
    parser.add_argument("--gpt-model", choices=sizes, help=text)


def add_set(parser: argparse.ArgumentParser, *sections: str, text: str = "any field of the recipe") -> None:
    """``args.set``, which changes these sections (see ``settings_of``), or without any all of a recipe."""
    fields = " or ".join(f"{section}.FIELD" for section in sections)
    text = f"change a configuration: {fields}" if sections else text
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
    parser.set_defaults(sections=sections)


def settings_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """What --set says by section, without the section's name: "tokenizer" -> ["dim=64"].

    A field without a section is the first section's, as it was in version 0.1, which also said "gpt" for "generator".
    """
    found: dict[str, list[str]] = {section: [] for section in args.sections}
    for setting in args.set:
        head, dot, rest = modern(setting).partition(".")
        if dot and head in found:
            found[head].append(rest)
        else:
            found[args.sections[0]].append(setting)
    return found


def said_by(settings: Iterable[str]) -> set[str]:
    """The fields, or whole sections, that --set names."""
    return {setting.partition("=")[0].strip() for setting in settings}


def modern(setting: str) -> str:
    """The section of a generator was called "gpt" in version 0.1."""
    return f"generator.{setting[4:]}" if setting.startswith("gpt.") else setting


def add_hub(parser: Parser, offline: str) -> None:
    """``args.cache_dir`` and ``args.offline``, for ``weights.download.hub_access``; ``offline`` is the help text."""
    parser.add_argument("--cache-dir", metavar="FOLDER", help="another cache than huggingface_hub's")
    parser.add_argument("--offline", action="store_true", help=offline)


# --------------------------------------------------------------------------------------
# Networks that measure
# --------------------------------------------------------------------------------------


def add_inception(parser: Parser) -> None:
    text = "Inception weights (default: $VFMTOK_INCEPTION, torch hub's cache, or downloaded)"
    parser.add_argument("--inception", metavar="PATH", help=text)


def add_lpips(parser: Parser) -> None:
    text = "torchvision's VGG16 weights (default: torch hub's cache, or downloaded)"
    parser.add_argument("--lpips", metavar="PATH", help=text)


def add_measuring_encoder(parser: Parser, flag: str, text: str) -> None:
    """``flag`` ENCODER, ``flag``-weights and ``flag``-size."""
    parser.add_argument(flag, metavar="ENCODER", help=text)
    parser.add_argument(
        f"{flag}-weights", metavar="W", help="of the encoder: hub, package or a file's path (default: hub)"
    )
    parser.add_argument(
        f"{flag}-size", type=positive, metavar="PX", help="that the encoder sees images at (default: its own)"
    )


def measuring_encoder(args: argparse.Namespace, flag: str) -> tuple[str, str, int | None] | None:
    """Name, weights and size, for ``encoder_distance.open_encoder``; None: it was not asked for. Raises ConfigError."""
    name, weights, size = (getattr(args, f"{flag[2:]}{end}".replace("-", "_")) for end in ("", "_weights", "_size"))
    for end, value in (("weights", weights), ("size", size)):
        if name is None and value is not None:
            raise ConfigError(f"{flag}-{end} belongs to {flag} ENCODER")
    return None if name is None else (name, weights or "hub", size)


def add_spatial_tap(parser: Parser, default: str | None = "convolution") -> None:
    """With ``default`` None the value is None where the flag was not given."""
    parser.add_argument(
        "--spatial-tap",
        choices=("convolution", "activation"),  # inception.SpatialTap
        default=default,
        help="where sFID's features are read, as for the reference: before (default) or after batch norm and ReLU",
    )


# --------------------------------------------------------------------------------------
# Values
# --------------------------------------------------------------------------------------


def count(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number from 0 is needed, got '{text}'")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, got '{text}'")
    return int(text)


def path_of(value: str | None) -> Path | None:
    return None if value is None else Path(value).expanduser()
