"""`vfmtok export RUN OUT`: the tokenizer or generator of a run under the released names; or a folder."""

import argparse
from pathlib import Path

import torch
from torch import nn

from vfmtok.config import config_from_dict
from vfmtok.discriminators.build import build_discriminator
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.files import replacing
from vfmtok.generators import AnyGeneratorConfig, build_generator, generator_tree
from vfmtok.pretrained.saving import save_run
from vfmtok.tokenizers import AnyTokenizerConfig, build_to_fill
from vfmtok.weights import checkpoint
from vfmtok.weights.name_maps import copy_strictly, to_released


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        'Of a run\'s model: inference holds the weights to use (the average, where there is one) under "model"; full '
        "holds the weights, the average, a tokenizer's discriminators and the step, as published training checkpoints "
        "do. Neither file has the model's configuration, as the published ones have none; mean and standard deviation "
        "of a generator's latents become a file beside it, OUT_latents_stats.pt. pretrained makes OUT a "
        "folder that from_pretrained opens, with the configuration and a card of its --metrics."
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder (its newest checkpoint) or a checkpoint's")
    parser.add_argument("out", metavar="OUT", help="the file to write, such as tokenizer.pt; of pretrained a folder")
    parser.add_argument("--kind", choices=("inference", "full", "pretrained"), default="inference")
    parser.add_argument("--metrics", action="append", metavar="JSON", help="results.json for the card of a pretrained")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    if args.kind == "pretrained":
        print(
            f"{save_run(args.run, args.out, args.metrics)}: model.safetensors, config.yaml and README.md of {args.run}"
        )
        return
    if args.metrics:
        raise ConfigError("--metrics go into the card that --kind pretrained writes")
    folder = Path(args.run).expanduser()
    if (folder / "checkpoints").is_dir():
        folder = checkpoint.newest_checkpoint(folder)
    saved = checkpoint.load(folder)
    model, out = _model(saved), Path(args.out).expanduser()
    content = released_checkpoint(saved, model, args.kind)
    _write(content, out)
    print(f"{out}: {args.kind} checkpoint of {folder} ({', '.join(content)})")
    statistics = getattr(model, "latent_statistics", None)
    if statistics is not None:  # published files of weights leave them out
        file = out.with_name(f"{out.stem}_latents_stats.pt")
        _write({name: value.cpu()[None] for name, value in zip(("mean", "std"), statistics, strict=True)}, file)
        print(f"{file}: what it normalises latents by, for --latent-stats")


def _write(content: dict, out: Path) -> None:
    try:
        with replacing(out) as part:
            torch.save(content, part)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        raise ConfigError(f"cannot write {out}: {error}") from None


def released_checkpoint(saved: checkpoint.Checkpoint, model: nn.Module, kind: str) -> dict:
    """The content of the file, of a checkpoint whose weights are copied into ``model``.

    Raises:
        WeightsError: the checkpoint is not whole, or has a part without a published name.
    """
    source = str(saved.path)
    try:
        to_released(model)
    except WeightsError as error:
        raise WeightsError(f"{error}. --kind pretrained takes any model: a folder that from_pretrained opens") from None

    def published(part: str) -> dict:
        copy_strictly(model, saved.parts[part], source)
        return {name: tensor.detach().clone() for name, tensor in to_released(model).items()}

    if kind == "inference":
        return {"model": published("ema" if "ema" in saved.parts else "model")}
    content = {"model": published("model")}
    if "ema" in saved.parts:
        content["ema"] = published("ema")
    for section in ("adversarial", "second_adversarial"):
        part = section.replace("adversarial", "discriminator")
        if part in saved.parts:
            content[part] = to_released(_discriminator(saved, section, part, model.config.image_size))
    return {**content, "steps": saved.step}


def _model(saved: checkpoint.Checkpoint) -> nn.Module:
    """What the run trained, with weights to be replaced."""
    recipe, source = saved.numbers["recipe"], str(saved.path)
    if "tokenizer" in recipe:
        return build_to_fill(config_from_dict(recipe["tokenizer"], AnyTokenizerConfig, source, saved=True))
    return build_generator(config_from_dict(generator_tree(recipe), AnyGeneratorConfig, source, saved=True))


def _discriminator(saved: checkpoint.Checkpoint, section: str, part: str, image_size: int) -> nn.Module:
    """That of a section of the recipe, which is ``part`` of the checkpoint."""
    kind = saved.numbers["recipe"][section]["discriminator"]
    discriminator = build_discriminator(kind, image_size, weights="none")  # the frozen part is not exported
    try:
        discriminator.load_state_dict(saved.parts[part])
    except RuntimeError as error:
        raise WeightsError(f"{saved.path}: {str(error).splitlines()[0]}") from None
    return discriminator
