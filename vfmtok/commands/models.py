"""What the flags of models open (see ``flags.add_tokenizer``, ``add_generator``, ``add_set``)."""

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vfmtok.commands import flags
from vfmtok.config import override_tree
from vfmtok.encoders.config import require_encoder_weights
from vfmtok.errors import ConfigError
from vfmtok.pretrained.loading import load_generator, load_tokenizer, read_config
from vfmtok.pretrained.published import published_file, split_name
from vfmtok.tokenizers import load_config
from vfmtok.tokenizers.published_flags import fields_of_flags
from vfmtok.weights.hashing import model_hash


def add_models(parser: argparse.ArgumentParser, needs_generator: bool = True) -> None:
    """The flags that ``open_models`` reads."""
    flags.add_generator(parser, required=needs_generator)
    flags.add_tokenizer(parser, required=False)
    flags.add_generator_facts(parser)
    flags.add_set(parser, "tokenizer", "generator")


def open_tokenizer(
    args: argparse.Namespace, device: torch.device, published: Mapping[str, Any] | None = None, encodes: bool = True
) -> nn.Module:
    """The tokenizer of --vq-ckpt, or the one that a published generator goes with, on ``device``.

    Args:
        published: flags of the published command lines and their values, before what --set says.
        encodes: it will: then a frozen encoder may be random only where that is written out.

    Raises:
        VFMTokError: it is not there, or can't be used.
    """
    args.vq_ckpt, fitting = _tokenizer_of(args)
    changes = flags.settings_of(args)["tokenizer"]
    if published:
        config = read_config(args.vq_ckpt) if args.tokenizer_config is None else load_config(args.tokenizer_config)
        if config is None:
            raise ConfigError(f"{args.vq_ckpt} does not bring its configuration: name it (--transformer-config-file)")
        changes = [*(f"{field}={value}" for field, value in fields_of_flags(config, published).items()), *changes]
    tokenizer = load_tokenizer(args.vq_ckpt, args.tokenizer_config, [*fitting, *changes], getattr(args, "prefer", None))
    if encodes and args.tokenizer_config is not None:  # a run's own configuration says what it was trained on
        require_encoder_weights(tokenizer.config)
    return tokenizer.to(device)


def _tokenizer_of(args: argparse.Namespace) -> tuple[str, tuple[str, ...]]:
    """What --vq-ckpt names, and the changes of its configuration that a published generator needs.

    A published generator says which tokenizer of its repository it goes with. Raises VFMTokError.
    """
    generator = getattr(args, "gpt", None) or getattr(args, "gpt_ckpt", None)
    named = None if generator is None else split_name(generator)
    if named is None:
        if args.vq_ckpt is None:
            raise ConfigError("name the tokenizer (--vq-ckpt): only a published generator says which one it goes with")
        return args.vq_ckpt, ()
    repository, part = named
    row = published_file(repository, part or args.gpt_model, "generator")
    own = (f"{repository}:{row.tokenizer}", row.tokenizer_settings)
    if args.vq_ckpt is None or split_name(args.vq_ckpt) in ((repository, None), (repository, row.tokenizer)):
        return own
    return args.vq_ckpt, ()


def generator_fields(args: argparse.Namespace) -> dict:
    """Fields of the generator's configuration that flags and --set name. Raises ConfigError."""
    fields = override_tree({}, flags.settings_of(args)["generator"])
    for name in ("vocab_size", "num_classes", "token_dim"):
        if getattr(args, name, None) is not None:
            fields[name] = getattr(args, name)
    return fields


def open_models(
    args: argparse.Namespace, device: torch.device, encodes: bool = False
) -> tuple[nn.Module, nn.Module, list[str] | None]:
    """The tokenizer and the generator of --vq-ckpt and --gpt, and the names of the classes where the run knows them.

    ``encodes`` as for ``open_tokenizer``.

    Raises:
        VFMTokError: one is not there, or the generator's tokens are another tokenizer's.
    """
    tokenizer = open_tokenizer(args, device, encodes=encodes)
    fields, stats = generator_fields(args), args.latent_stats
    generator, weights = load_generator(args.gpt, tokenizer, args.gpt_model, fields, statistics=stats)
    add_guide(args, generator, tokenizer)
    return tokenizer, generator.to(device), weights.classes


def add_guide(args: argparse.Namespace, generator: nn.Module, tokenizer: nn.Module) -> None:
    """Let the weaker generator of --guidance-ckpt, if one is named, guide ``generator``. Raises VFMTokError."""
    if args.guidance_ckpt is None:
        if args.guidance_model is not None:
            raise ConfigError("--guidance-model belongs to --guidance-ckpt")
        return
    if not hasattr(generator, "use_guide"):
        raise ConfigError(f"--guidance-ckpt: a {generator.config.kind} generator takes no weaker one to guide it")
    size, stats = args.guidance_model, args.latent_stats
    weaker, _ = load_generator(args.guidance_ckpt, tokenizer, size, {}, statistics=stats)
    if weaker.code != generator.code or weaker.num_classes != generator.num_classes:
        raise ConfigError(f"--guidance-ckpt {args.guidance_ckpt} makes other latents or classes than the generator")
    generator.use_guide(weaker, model_hash(weaker)[:12])
