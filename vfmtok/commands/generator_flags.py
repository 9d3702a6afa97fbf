"""Published flags of ``train_c2i.py`` (see ``flags.py``), and what the data say where no flag does."""

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml

from vfmtok import distributed
from vfmtok.commands.parser import OneLineParser
from vfmtok.commands.tokenizer_flags import SHARED_FLAGS, Flags, add_flags, choices, given
from vfmtok.config import with_overrides
from vfmtok.data.code_cache import CodeCache
from vfmtok.data.dataset_folder import open_for_training
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.generators.gpt.config import GPT_SIZES, GPTConfig
from vfmtok.generators.gpt.model import GPT
from vfmtok.pretrained import loading as pretrained
from vfmtok.tokenizers import load_config
from vfmtok.training.generator_recipe import GeneratorRecipe

GPT_FLAGS: Flags = (
    ("--code-path", "data.code_path", str, "token cache made by `vfmtok codes`"),
    ("--val-code-path", "data.val_code_path", str, "held-out; default: beside it, with val for train in its name"),
    ("--anno-file", "data.path", str, "images instead of a cache: folder made by `vfmtok prepare`, or an LMDB"),
    ("--val-path", "data.val_path", str, "held-out images; default: the val_lmdb beside the training images"),
    ("--vq-ckpt", "data.vq_ckpt", str, "the tokenizer: encodes images, decodes pictures"),
    ("--transformer-config-file", "data.vq_config", str, "the tokenizer's configuration, if its weights lack it"),
    ("--vocab-size", "generator.vocab_size", int, "default: as the cache or the tokenizer says"),
    ("--num-classes", "generator.num_classes", int, "default: as the cache or the images say"),
    ("--dropout-p", "generator.dropout_p", float, "after the blocks' output projections"),
    ("--token-dropout-p", "generator.token_dropout_p", float, "on the input embeddings"),
    ("--drop-path-rate", "generator.drop_path_rate", float, "stochastic depth"),
    ("--checkpoint-activations", "run.checkpoint_activations", bool, "recompute layers in the backward pass"),
    (
        "--parallel",
        "parallel",
        choices(GeneratorRecipe, "parallel"),
        "fsdp: weights and optimizer spread over the processes",
    ),
    *SHARED_FLAGS,
)

LARGE = 1_000_000_000  # parameters from which the published run has 200 epochs instead of 300


def gpt_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        "train_c2i.py",
        description="Train a class-conditional generator on tokens. Without --recipe the settings are the published "
        "ones. Plain `python train_c2i.py` is one process; scripts/torchrun.sh starts one per GPU. The same command "
        "again resumes.",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", metavar="YAML", help="settings of the whole run, such as configs/emoji64_gpt.yaml")
    parser.add_argument(
        "--gpt-model", choices=GPT_SIZES, help="size [generator.n_layer, generator.n_head, generator.dim]"
    )
    parser.add_argument("--gpt-type", choices=("c2i",), help="class-conditional is what there is")
    parser.add_argument(
        "--gpt-ckpt", metavar="PATH", help="a checkpoint to continue from, or to begin with (--finetune)"
    )
    parser.add_argument(
        "--finetune", action="store_true", help="take only weights from --gpt-ckpt, ours or released, all that fit"
    )
    parser.add_argument("--latent-size", type=int, help="side of the token grid [generator.num_tokens, its square]")
    parser.add_argument("--image-size", type=int, help="of the tokenizer; checked against the cache or the tokenizer")
    parser.add_argument(
        "--downsample-size", type=int, help="the tokenizer's pixels per decoder cell; checked against it"
    )
    parser.add_argument("--cls-token-num", type=int, choices=(1,), help="class tokens of a sequence: one")
    add_flags(parser, GPT_FLAGS)
    parser.add_argument("--beta1", type=float, help="[optimizer.betas]")
    parser.add_argument("--beta2", type=float, help="[optimizer.betas]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other field")
    return parser


def gpt_recipe(args: argparse.Namespace) -> GeneratorRecipe:
    """The data's own facts, then the recipe file, then flags, then --set.

    Raises:
        ConfigError: a setting can't be used, or contradicts the data.
        VFMTokError: the data or the tokenizer can't be read.
    """
    recipe = load_config(args.recipe, kind=GeneratorRecipe) if args.recipe else GeneratorRecipe()
    values: dict[str, Any] = {}
    if args.gpt_model:
        values |= {f"gpt.{key}": value for key, value in GPT_SIZES[args.gpt_model].items()}
    if args.latent_size is not None:
        values["generator.num_tokens"] = args.latent_size**2
    values |= given(args, GPT_FLAGS)
    betas = (args.beta1, args.beta2)
    if betas != (None, None):
        old = recipe.optimizer.betas
        values["optimizer.betas"] = [b if new is None else new for b, new in zip(old, betas, strict=True)]
    recipe = with_overrides(recipe, args.set, values)
    explicit = {*values, *(override.partition("=")[0].strip() for override in args.set), *_keys_of(args.recipe)}
    if args.finetune and not args.gpt_ckpt:
        raise ConfigError("--finetune needs --gpt-ckpt, the weights to begin with")
    if not (recipe.data.code_path or recipe.data.path):
        raise ConfigError("no training data: give --code-path (a token cache) or --anno-file (images) with --vq-ckpt")
    found = facts_of(recipe)
    _check_sizes(args, found)
    missing = {key: value for key, value in found.items() if key.startswith("gpt.") and key not in explicit}
    recipe = with_overrides(recipe, (), missing)
    if not explicit & {"optimizer.epochs", "optimizer.steps"} and _parameters(recipe.generator) >= LARGE:
        recipe = with_overrides(recipe, (), {"optimizer.epochs": 200.0})
    return recipe


def facts_of(recipe: GeneratorRecipe) -> dict[str, int]:
    """What the data fix: the generator's vocab_size, num_tokens and (where classes have names) num_classes as keys of
    the recipe; "image size" and, of a tokenizer, "stride"."""
    data, found = recipe.data, {}
    if data.code_path:
        cache = CodeCache(Path(data.code_path).expanduser())
        found |= {"generator.vocab_size": cache.codebook_size, "generator.num_tokens": cache.num_tokens}
        found["image size"] = cache.metadata["image_size"]
        classes = cache.classes
    else:
        classes = open_for_training(Path(data.path).expanduser())[0].classes
    if classes is not None:
        found["generator.num_classes"] = len(classes)
    if data.vq_ckpt:
        config = _tokenizer_config(data.vq_ckpt, data.vq_config)
        found |= {"image size": config.image_size, "stride": config.stride}
        if not data.code_path:
            found["generator.vocab_size"], found["generator.num_tokens"] = (
                config.code.largest_codebook,
                config.code.num_tokens,
            )
    return found


def _tokenizer_config(path: str, config_file: str | None):
    if config_file is not None:
        return load_config(config_file)
    config = pretrained.read_config(path)
    if config is None:
        raise WeightsError(f"{path} does not bring its configuration: name it (--transformer-config-file)")
    return config


def _check_sizes(args: argparse.Namespace, found: dict[str, int]) -> None:
    for flag, value, name in (
        ("--image-size", args.image_size, "image size"),
        ("--downsample-size", args.downsample_size, "stride"),
    ):
        if value is not None and name in found and value != found[name]:
            raise ConfigError(f"{flag} {value} does not fit the tokenizer, whose {name} is {found[name]}")
        if value is not None and name not in found:
            distributed.print_main(f"{flag} {value} was not checked: a token cache does not tell it, a tokenizer does")


def _keys_of(file: str | None) -> set[str]:
    """The keys "section.name" that a recipe file sets; it was read before."""
    if file is None:
        return set()
    tree = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    return {f"{section}.{key}" for section, part in tree.items() if isinstance(part, dict) for key in part}


def _parameters(config: GPTConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT(config).parameters())
