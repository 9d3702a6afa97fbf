"""Flags of how a generator samples, whatever its family: ``generator.sampling`` says which settings there are."""

import argparse
from collections.abc import Callable, Iterable

import yaml

from vfmtok.config import config_from_dict
from vfmtok.errors import ConfigError
from vfmtok.generators.contract import Generator, SamplingSettings

# Settings with a flag of their own: (flag, what it takes, help). The setting has the flag's name; a flag that is not
# given leaves the family's default.
FLAGS = (
    ("--cfg-scale", float, "guidance; 1 is none (default of a GPT: 1.5)"),
    ("--cfg-interval", int, "guide the first N + 2 tokens only (default -1: all)"),
    ("--cfg-schedule", str, "how guidance rises over the tokens: constant (default), linear, cosine, power-cosine"),
    ("--cfg-power", float, "of power-cosine (default 1)"),
    ("--temperature", float, "default 1"),
    ("--top-k", int, "0: all (default)"),
    ("--top-p", float, "default 1"),
    (
        "--kv-cache",
        str,
        "of tokens: auto (default: fixed on CUDA, else growing), fixed (on CUDA with CUDA graphs) or growing",
    ),
    ("--method", str, "of latents: euler, heun or sde (default: as the generator was published)"),
    ("--steps", int, "of latents: from noise to data"),
    ("--shift", float, "of latents: above 1, more steps near noise (LightningDiT's timestep_shift b is 1/b)"),
    ("--last", float, "of latents: the noise level at which to stop"),
    ("--cfg-low", float, "of latents: guide from this noise level on"),
    ("--cfg-high", float, "of latents: guide up to this noise level"),
    ("--cfg-channels", int, "of latents: guide the first so many channels"),
    ("--cfg-token-scale", float, "guidance of a class token that is drawn along; 0 is without"),
)


def mode(text: str) -> str:
    """REG's --mode. Its "ode" says which kind of method, not which one."""
    if text == "ode":
        raise argparse.ArgumentTypeError("ode is a kind of method: choose euler or heun")
    return text


def label_sampling(text: str) -> str:
    """RAE's names of how classes are chosen -> ours."""
    if text not in ("equal", "random"):
        raise argparse.ArgumentTypeError(f"takes equal or random, got '{text}'")
    return "balanced" if text == "equal" else "random"


# What published scripts call some of them.
OTHER_NAMES = (
    ("--num-steps", "steps", int),
    ("--mode", "method", mode),
    ("--guidance-low", "cfg_low", float),
    ("--guidance-high", "cfg_high", float),
    ("--cls-cfg-scale", "cfg_token_scale", float),
    ("--guidance-scale-pow", "cfg_power", float),
)


def add_sampling(parser: argparse.ArgumentParser, leave_out: Iterable[str] = ()) -> None:
    """Flags of single settings, but those that a command has in a form of its own, and --sampling for every setting."""
    for flag, takes, text in FLAGS:
        if flag not in leave_out:
            parser.add_argument(flag, type=takes, metavar=takes.__name__.upper(), help=text)
    if "--cfg-scale" not in leave_out:
        add_guidance_scale(parser, guidance_scale)
    for flag, name, takes in OTHER_NAMES:
        text = f"--{name.replace('_', '-')}, as published scripts call it"
        metavar = "STR" if takes is mode else takes.__name__.upper()
        parser.add_argument(flag, dest=name, type=takes, metavar=metavar, help=text)
    parser.add_argument("--path-type", choices=("linear",), help="of latents: the straight path is what there is")
    parser.add_argument("--greedy", action="store_true", default=None, help="the likeliest token every time")
    parser.add_argument(
        "--sampling",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting of the generator's family, such as top_k=100",
    )


def add_guidance_scale(parser: argparse.ArgumentParser, takes: Callable[[str], float | str]) -> None:
    """RAR's name of --cfg-scale."""
    text = "--cfg-scale, as RAR's scripts call it: 0 is without guidance"
    parser.add_argument("--guidance-scale", dest="cfg_scale", type=takes, metavar="FLOAT", help=text)


def guidance_scale(text: str) -> float:
    """RAR's scripts draw without guidance at 0, where the scale is 1."""
    return float(text) or 1.0


def sampling_of(args: argparse.Namespace, generator: Generator) -> SamplingSettings:
    """The settings that the flags of ``add_sampling`` say.

    Raises:
        ConfigError: the family has no such setting (names the closest), or a value is impossible.
    """
    names = [flag.removeprefix("--").replace("-", "_") for flag, _, _ in FLAGS] + ["greedy"]
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    if getattr(generator, "guided_by", None) is not None:
        given["cfg_weaker"] = generator.guided_by
    for text in args.sampling:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--sampling takes KEY=VALUE, got '{text}'")
        try:
            given[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--sampling {text}: {value} is no value") from None
    source = f"settings of how a {generator.config.kind} generator samples"
    return config_from_dict(given, generator.sampling, source)
