"""Published flags of ``train_c2i.py`` (see ``flags.py``), and what the data say where neither recipe nor flag does."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfmtok import distributed
from vfmtok.code import Code
from vfmtok.commands import flags
from vfmtok.commands.flags import Flags, choices
from vfmtok.commands.parser import OneLineParser
from vfmtok.commands.tokenizer_flags import MODEL_FLAGS, SHARED_FLAGS
from vfmtok.config import config_from_dict, config_to_dict, read_tree, with_overrides
from vfmtok.data.dataset_folder import open_for_training
from vfmtok.data.latent_cache import open_cache
from vfmtok.encoders.config import require_encoder_weights
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.generators import family_of_size
from vfmtok.pretrained import loading as pretrained
from vfmtok.tokenizers import load_config
from vfmtok.tokenizers.published_flags import check_flags
from vfmtok.training.generator_recipe import GeneratorRecipe, TokenDataConfig

GENERATOR_FLAGS: Flags = (
    ("--code-path", "data.code_path", str, "token cache made by `vfmtok codes`"),
    ("--val-code-path", "data.val_code_path", str, "held-out; default: beside it, with val for train in its name"),
    ("--anno-file", "data.path", str, "images instead of a cache: made by `vfmtok prepare`, or WebDataset shards"),
    ("--val-path", "data.val_path", str, "held-out images; default: the val_lmdb beside the training images"),
    (flags.TOKENIZER[0], "data.vq_ckpt", str, f"{flags.TOKENIZER[1]}; it encodes images and decodes pictures"),
    (flags.TOKENIZER_CONFIG[0], "data.vq_config", str, flags.TOKENIZER_CONFIG[1]),
    ("--vocab-size", "generator.vocab_size", int, "default: as the cache or the tokenizer says"),
    ("--num-slots", "generator.num_holistic", int, "holistic tokens; default: as the cache or the tokenizer says"),
    ("--num-classes", "generator.num_classes", int, "default: as the cache or the images say"),
    ("--dropout-p", "generator.dropout_p", float, "after the blocks' output projections"),
    ("--token-dropout-p", "generator.token_dropout_p", float, "on the input embeddings"),
    ("--drop-path-rate", "generator.drop_path_rate", float, "stochastic depth"),
    ("--vae-latent-dim", "generator.in_channels", int, "channels of latents; default: as the cache or tokenizer says"),
    ("--proj-coeff", "generator.align_weight", float, "of the alignment with an encoder, in the loss"),
    ("--cls", "generator.token_weight", float, "of the class token's velocity, in the loss"),
    ("--encoder-depth", "generator.align_depth", int, "the block whose state is aligned, counted from 1"),
    ("--checkpoint-activations", "run.checkpoint_activations", bool, "recompute layers in the backward pass"),
    (
        "--parallel",
        "parallel",
        choices(GeneratorRecipe, "parallel"),
        "fsdp: weights and optimizer spread over the processes",
    ),
    *SHARED_FLAGS,
)

# Of the tokenizer, which the published script built from them: here they are checked against the one that was trained.
CHECKED_FLAGS = tuple(
    row
    for row in MODEL_FLAGS
    if row[0] in ("--codebook-size", "--codebook-embed-dim", "--codebook-slots-embed-dim", "--z-channels", "--vq-model")
)
CHECKED_TEXT = "of the tokenizer; checked against it"

CONFIGS = Path(__file__).parents[2] / "configs"


def generator_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        "train_c2i.py",
        description="Train a class-conditional generator on the codes of images. Without --recipe the settings are "
        "the published ones. Plain `python train_c2i.py` is one process; scripts/torchrun.sh starts one per GPU. The "
        "same command again resumes.",
        allow_abbrev=False,
    )
    flags.add_recipe(parser, "configs/vfmtok/gpt_b.yaml")
    flags.add_size(parser, "a named size [generator.kind and its fields]; optimizer: without a recipe as published")
    parser.add_argument("--path-type", choices=("linear",), help="of latents: the straight path is what there is")
    parser.add_argument(
        "--enc-type",
        choices=("dinov2-vit-b",),
        help="of REG sizes: the encoder that they are aligned with; generator.align_encoder takes any",
    )
    parser.add_argument("--gpt-type", choices=("c2i",), help="class-conditional is what there is")
    flags.add_weights_to_start_from(parser, "--gpt-ckpt")
    parser.add_argument("--latent-size", type=int, help="side of the grid of tokens or latents")
    parser.add_argument("--image-size", type=int, help="of the tokenizer; checked against the cache or the tokenizer")
    parser.add_argument(
        "--downsample-size", type=int, help="the tokenizer's pixels per decoder cell; checked against it"
    )
    parser.add_argument("--cls-token-num", type=int, choices=(1,), help="class tokens of a sequence: one")
    flags.add_flags(parser, GENERATOR_FLAGS)
    flags.add_model_flags(parser, tuple((flag, takes, CHECKED_TEXT) for flag, takes, _ in CHECKED_FLAGS))
    flags.add_betas(parser)
    flags.add_steps(parser)
    flags.add_set(parser)
    return parser


def generator_recipe(args: argparse.Namespace) -> GeneratorRecipe:
    """The data's own facts, then the recipe file, then flags, then --set.

    Raises:
        ConfigError: a setting can't be used, or contradicts the data.
        VFMTokError: the data or the tokenizer can't be read.
    """
    tree = GeneratorRecipe.upgraded(read_tree(args.recipe)) if args.recipe else {}
    recipe = config_from_dict(tree, GeneratorRecipe, args.recipe or "recipe")
    values: dict[str, Any] = {}
    if args.gpt_model:
        family = family_of_size(args.gpt_model)
        values = {"generator.kind": family.config.kind}
        values |= {f"generator.{key}": value for key, value in family.sizes[args.gpt_model].items()}
        if not args.recipe:
            values |= published_optimizer(args.gpt_model, family.config.kind)
    given = flags.given(args, GENERATOR_FLAGS) | flags.given_betas(args, recipe.optimizer.betas)
    settings = [flags.modern(setting) for setting in args.set]
    values |= given
    kind = recipe.generator.kind
    recipe = with_overrides(recipe, settings, values)
    if args.latent_size is not None:
        sides = getattr(type(recipe.generator), "fields_of_side", lambda side: {"num_tokens": side**2})
        values |= {f"generator.{name}": value for name, value in sides(args.latent_size).items()}
        recipe = with_overrides(recipe, settings, values)
    recipe = flags.shorten(args, recipe, {*given, *flags.said_by(settings)})
    if args.enc_type is not None and getattr(recipe.generator, "align_encoder", None) is None:
        raise ConfigError("--enc-type: this generator is aligned with no encoder (--gpt-model REG-XL/1 is)")
    if args.finetune and not args.gpt_ckpt:
        raise ConfigError("--finetune needs --gpt-ckpt, the weights to begin with")
    if not (recipe.data.code_path or recipe.data.path):
        raise ConfigError("no training data: give --code-path (a token cache) or --anno-file (images) with --vq-ckpt")
    facts = facts_of(recipe.data)
    _check_sizes(args, facts)
    said = {*values, *flags.said_by(settings)}
    if recipe.generator.kind == kind:  # else the file's section was of another family
        said |= {f"generator.{key}" for key in tree.get("generator", {})}
    fields = {f"generator.{key}": value for key, value in facts.fields_of(recipe.generator).items()}
    return with_overrides(recipe, (), {key: value for key, value in fields.items() if key not in said})


def published_optimizer(size: str, kind: str) -> dict[str, Any]:
    """The section ``optimizer`` of the published run of this size, as its recipe says, for who names the size alone.

    A size without a published run gets the recipe's defaults. Either is printed.
    """
    name = f"{size.lower().replace('-', '_').replace('/', '_')}.yaml"
    files = [CONFIGS / system / name for system in dict.fromkeys(("vfmtok", kind))]
    word = size.lower().split("-")[0]  # of sizes without a recipe: that of a sibling, such as LightningDiT-B/1's
    files += sorted((CONFIGS / kind).glob(f"{word}_*.yaml"))
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        epochs = GeneratorRecipe().optimizer.epochs
        distributed.print_main(f"{size} has no recipe of a published run: {epochs:g} epochs unless said otherwise")
        return {}
    optimizer = config_to_dict(config_from_dict(read_tree(file), GeneratorRecipe, str(file)).optimizer)
    where = f"{file.parent.parent.name}/{file.parent.name}/{file.name}"
    distributed.print_main(f"{size}: {optimizer['epochs']:g} epochs unless said otherwise, as in {where}")
    return {f"optimizer.{key}": value for key, value in optimizer.items()}


@dataclass(frozen=True)
class Facts:
    """What the data fix."""

    code: Code
    num_classes: int | None  # where classes have names
    image_size: int
    stride: int | None  # of the tokenizer, which a cache does not tell
    tokenizer: Any = None  # its configuration, likewise

    def fields_of(self, config: Any) -> Mapping[str, Any]:
        """The fields of a generator's configuration that follow. Raises ConfigError for a code it can't learn."""
        classes = {} if self.num_classes is None else {"num_classes": self.num_classes}
        return type(config).fields_of_code(self.code) | classes


def facts_of(data: TokenDataConfig) -> Facts:
    """Raises VFMTokError if the data or the tokenizer can't be read."""
    tokenizer = _tokenizer_config(data.vq_ckpt, data.vq_config) if data.vq_ckpt else None
    if data.path and data.vq_config:  # a run's own configuration says what it was trained on
        require_encoder_weights(tokenizer)
    if data.code_path:
        cache = open_cache(Path(data.code_path).expanduser())
        code, classes, image_size = cache.code, cache.classes, cache.metadata["image_size"]
    else:
        classes = open_for_training(data.path, options=data.shards)[0].classes
        code = tokenizer.code  # TokenDataConfig asks for it beside images
    stride = None
    if tokenizer is not None:
        image_size, stride = tokenizer.image_size, getattr(tokenizer, "stride", None)
    return Facts(code, None if classes is None else len(classes), image_size, stride, tokenizer)


def _tokenizer_config(path: str, config_file: str | None):
    if config_file is not None:
        return load_config(config_file)
    config = pretrained.read_config(path)
    if config is None:
        raise WeightsError(f"{path} does not bring its configuration: name it (--transformer-config-file)")
    return config


def _check_sizes(args: argparse.Namespace, facts: Facts) -> None:
    for flag, value, name, found in (
        ("--image-size", args.image_size, "image size", facts.image_size),
        ("--downsample-size", args.downsample_size, "stride", facts.stride),
    ):
        if value is not None and found is not None and value != found:
            raise ConfigError(f"{flag} {value} does not fit the tokenizer, whose {name} is {found}")
        if value is not None and found is None:
            distributed.print_main(f"{flag} {value} was not checked: a token cache does not tell it, a tokenizer does")
    given = flags.given_model_flags(args, CHECKED_FLAGS)
    if facts.tokenizer is not None:
        check_flags(facts.tokenizer, given)
    elif given:
        names = ", ".join(given)
        distributed.print_main(f"{names}: not checked, since a token cache does not tell, a tokenizer (--vq-ckpt) does")
