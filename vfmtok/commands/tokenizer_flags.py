"""Published flags of ``vq_train.py``, and the field of the recipe that each one sets.

``TOKENIZER_FLAGS`` is the whole story; ``SHARED_FLAGS`` are those of every training script (see ``flags.py``).
"""

import argparse
from typing import Any

from vfmtok import distributed
from vfmtok.commands import flags
from vfmtok.commands.flags import Flags, choices
from vfmtok.commands.parser import OneLineParser
from vfmtok.config import config_to_dict, with_overrides
from vfmtok.errors import ConfigError
from vfmtok.tokenizers import load_config
from vfmtok.tokenizers.published_flags import AE_MODELS, VQ_MODELS, fields_of_flags, without_effect
from vfmtok.training.recipe import AdversarialConfig, LossConfig, OptimizerConfig, RunConfig, TokenizerRecipe

SHARED_FLAGS: Flags = (
    ("--results-dir", "run.results_dir", str, "folder of the run; the same command again continues the run in it"),
    (
        "--mixed-precision",
        "run.precision",
        choices(RunConfig, "precision"),
        "autocast type; auto: bf16 where the device computes it, else none",
    ),
    ("--global-batch-size", "run.global_batch", int, "images per step, over all processes"),
    ("--gradient-accumulation-steps", "run.accumulation", int, "passes per step"),
    ("--global-seed", "run.seed", int, ""),
    ("--new-data", "run.new_data", bool, "continue a run though its data are not those of the checkpoint"),
    ("--num-workers", "data.num_workers", int, "loading processes per training process"),
    ("--image-key", "data.image_key", str, "of shards: the member that is the image, where several could be"),
    ("--label-key", "data.label_key", str, "of shards: the member that is the label; none: labels do not matter"),
    ("--log-every", "run.log_every", int, "steps"),
    ("--ckpt-every", "run.save_every", int, "steps"),
    ("--validate-every", "run.validate_every", int, "steps"),
    ("--compile", "run.compile", bool, "torch.compile"),
    ("--ema", "ema.enabled", bool, "keep an average of the weights"),
    ("--epochs", "optimizer.epochs", float, ""),
    ("--optimizer", "optimizer.name", choices(OptimizerConfig, "name"), "the published code used adam"),
    ("--lr", "optimizer.lr", float, ""),
    ("--weight-decay", "optimizer.weight_decay", float, ""),
    ("--max-grad-norm", "optimizer.max_grad_norm", float, "0 does not clip"),
    ("--warming-up-epochs", "optimizer.warmup_epochs", float, "linear warm-up of the learning rate"),
    ("--warming-up-init-lr", "optimizer.warmup_lr", float, "where the warm-up begins"),
)

TOKENIZER_FLAGS: Flags = (
    ("--data-path", "data.path", str, "made by `vfmtok prepare`, or WebDataset shards"),
    ("--val-path", "data.val_path", str, "held-out images; default: the val_lmdb beside the training images"),
    ("--codebook-weight", "loss.codebook_weight", float, ""),
    ("--reconstruction-loss", "loss.pixel", choices(LossConfig, "pixel"), ""),
    ("--perceptual-weight", "loss.perceptual_weight", float, ""),
    ("--disc-weight", "adversarial.weight", float, ""),
    ("--disc-start", "adversarial.start", int, "first step of the adversarial loss"),
    ("--disc-update-start", "adversarial.update_start", int, "first step of the discriminator's own training"),
    ("--disc-type", "adversarial.discriminator", choices(AdversarialConfig, "discriminator"), ""),
    ("--disc-loss", "adversarial.loss", choices(AdversarialConfig, "loss"), ""),
    ("--gen-loss", "adversarial.generator_loss", choices(AdversarialConfig, "generator_loss"), ""),
    *SHARED_FLAGS,
)

# Of the tokenizer: what each sets depends on its family (tokenizers/published_flags.py). (flag, what it takes, help)
MODEL_FLAGS = (
    ("--image-size", int, ""),
    ("--codebook-size", int, "of every codebook"),
    ("--codebook-slots-embed-dim", int, "dimensions of a code: of VFMTok's region tokens, of Hita's holistic tokens"),
    ("--codebook-embed-dim", int, "dimensions of a code: of VQGAN, of Hita's patches; VFMTok has no such codebook"),
    ("--embed-dim", int, "channels of a latent: of VFMAE"),
    ("--num-slots", int, "holistic tokens of Hita"),
    ("--entropy-loss-ratio", float, "weight of the entropy loss of every codebook"),
    ("--commit-loss-beta", float, "weight of the commitment loss of every codebook"),
    ("--z-channels", int, "width of the tokenizer's maps"),
    ("--dropout-p", float, "of the residual blocks"),
    ("--enable-vfm-recon", bool, "reconstruct the encoder's features; with Hita it must agree with the configuration"),
    ("--vq-model", tuple(VQ_MODELS), "depth of the pixel decoder, and of an encoder trained with it"),
    ("--ae-model", tuple(AE_MODELS), "the same of VFMAE"),
)


def tokenizer_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        "vq_train.py",
        description="Train a tokenizer. Without --recipe the settings are the published ones. Plain `python "
        "vq_train.py` is one process; scripts/torchrun.sh starts one per GPU. The same command again resumes.",
        allow_abbrev=False,
    )
    flags.add_recipe(parser, "configs/vfmtok/emoji64.yaml")
    flags.add_tokenizer_config(parser)
    flags.add_flags(parser, TOKENIZER_FLAGS)
    flags.add_model_flags(parser, MODEL_FLAGS)
    flags.add_betas(parser)
    flags.add_steps(parser)
    parser.add_argument(
        "--reconstruction-weight",
        type=float,
        help="half of loss.pixel_weight, as the published code adds the term twice",
    )
    flags.add_weights_to_start_from(parser, "--vq-ckpt")
    flags.add_set(parser)
    return parser


def tokenizer_recipe(args: argparse.Namespace) -> TokenizerRecipe:
    """The recipe file, then the tokenizer's configuration, then flags, then --set. Raises ConfigError."""
    recipe = load_config(args.recipe, kind=TokenizerRecipe) if args.recipe else TokenizerRecipe()
    values: dict[str, Any] = {}
    if args.tokenizer_config:
        values["tokenizer"] = config_to_dict(load_config(args.tokenizer_config))
    # What --set says about the tokenizer comes first: it may choose another family, whose flags these then are.
    given = flags.given_model_flags(args, MODEL_FLAGS)
    tokenizer = with_overrides(recipe, args.set, values).tokenizer if given else recipe.tokenizer
    for flag in without_effect(tokenizer, given):
        distributed.print_main(f"{flag} is without effect: a tokenizer of kind '{tokenizer.kind}' has no such part")
    values |= {f"tokenizer.{field}": value for field, value in fields_of_flags(tokenizer, given).items()}
    values |= flags.given(args, TOKENIZER_FLAGS)
    if args.reconstruction_weight is not None:
        values["loss.pixel_weight"] = 2 * args.reconstruction_weight
    values |= flags.given_betas(args, recipe.optimizer.betas)
    recipe = flags.shorten(args, with_overrides(recipe, args.set, values), {*values, *flags.said_by(args.set)})
    if args.finetune and not args.vq_ckpt:
        raise ConfigError("--finetune needs --vq-ckpt, the weights to begin with")
    if not recipe.data.path:
        raise ConfigError("no training images: give --data-path, a folder made by `vfmtok prepare`")
    return recipe
