"""Which transformation a step's images and latents undergo: a function of (seed, step), alike in all processes."""

import torch

from vfmtok.errors import ConfigError
from vfmtok.generators.counter_random import Draws
from vfmtok.layers.equivariance import Transformation
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.training.loss_recipe import EquivarianceConfig

QUARTER_TURNS = 4


def drawn_transformation(config: EquivarianceConfig, seed: int, step: int) -> Transformation | None:
    """Of this step of the run; None where the recipe wants none."""
    if not config.enabled:
        return None
    draws = Draws(seed % 2**64, torch.tensor([step]))
    kind, scale, turns, shrinks = draws.uniform("equivariance", 4)[0].tolist()
    if kind < config.latent_share:
        return Transformation(_chosen(config.latent_scales, scale), int(turns * QUARTER_TURNS))
    if shrinks < config.prior_share:
        return Transformation(prior_scale=_chosen(config.prior_scales, scale))
    return Transformation()


def check_transformations(config: EquivarianceConfig, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if the recipe wants what the tokenizer can't do."""
    if not config.enabled:
        return
    if not getattr(tokenizer, "takes_transformations", False):
        raise ConfigError(f"equivariance.enabled: a {tokenizer.config.kind} tokenizer can't decode transformed latents")
    for scale in sorted({*config.latent_scales, *config.prior_scales}):
        if hasattr(tokenizer, "check_scale"):
            tokenizer.check_scale(scale)


def _chosen(values: tuple[float, ...], uniform: float) -> float:
    return values[int(uniform * len(values))]
