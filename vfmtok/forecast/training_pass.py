"""The passes of a recipe's training, carried out on fake tensors: no weight is read, drawn or given memory.

Shapes: B batch, S image side.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from vfmtok.code import Ids
from vfmtok.discriminators.build import build_discriminator
from vfmtok.evaluation.model_size import without_weights
from vfmtok.forecast.operations import Pass, Watch, faked, measure, memory
from vfmtok.generators import build_generator
from vfmtok.generators.counter_random import Draws
from vfmtok.layers.precision import autocast
from vfmtok.losses.adversarial import LeCam
from vfmtok.tokenizers import build_tokenizer
from vfmtok.training.adversaries import Adversary, DiscriminatorPass
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.loss_recipe import AdversarialConfig
from vfmtok.training.objective import TokenizerObjective, build_perceptual
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.training.tokenizer_passes import TokenizerPass
from vfmtok.training.trained_parts import choose_trained, train_mode

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainingPass:
    """
    Attributes:
        counted: what a forward and a backward pass do, the discriminators' included.
        model: what is trained and averaged, on the meta device or of fake tensors.
        layers: that are gathered one at a time where the model is sharded.
        beside: discriminators, trained by an optimizer of their own.
        frozen_bytes: of networks that are neither trained nor saved, such as that of a perceptual loss.
        recomputes: whether its activations can be recomputed at all.
    """

    counted: Pass
    model: nn.Module
    layers: tuple[nn.Module, ...]
    beside: tuple[nn.Module, ...]
    frozen_bytes: int
    recomputes: bool


def training_pass(recipe: TokenizerRecipe | GeneratorRecipe) -> TrainingPass:
    """Of either recipe, its steps at their longest: with every loss. Raises VFMTokError as the training would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights that are not there are random to encoders
        return _of_tokenizer(recipe) if isinstance(recipe, TokenizerRecipe) else _of_generator(recipe)


def _of_generator(recipe: GeneratorRecipe) -> TrainingPass:
    config = without_weights(recipe.generator)
    with torch.device("meta"):
        generator = build_generator(config)
        if hasattr(generator, "begin_run"):
            generator.begin_run(1)
    choose_trained(generator, recipe.train)
    train_mode(generator, recipe.train)
    with_images = getattr(generator, "learns_from_images", False)
    kind = torch.int64 if isinstance(config.code, Ids) else torch.float32
    layers = tuple(getattr(generator, "layers", ()))

    def run(batch: int, watch: Watch) -> None:
        code, labels = torch.zeros(batch, *config.code.shape, dtype=kind), torch.zeros(batch, dtype=torch.int64)
        side = generator.features.encoder.network.config.image_size if with_images else 0
        images = {"images": torch.zeros(batch, 3, side, side, dtype=torch.uint8)} if with_images else {}
        with autocast(recipe.run.precision, CPU):
            terms = generator.loss(code, labels, Draws(0, torch.arange(batch)), **images)
        watch.forward_ends()
        sum(terms.values()).backward()
        generator.zero_grad()

    with faked(generator) as tensors:
        counted = measure(run, tensors, layers)
    recomputes = hasattr(generator, "checkpoint_activations") and bool(layers)
    return TrainingPass(counted, generator, layers, (), _bytes_apart(tensors, (generator,)), recomputes)


def _of_tokenizer(recipe: TokenizerRecipe) -> TrainingPass:
    config, loss = without_weights(recipe.tokenizer), without_weights(recipe.loss)
    # The gradients that adaptive weights are ratios of are not counted.
    loss = replace(loss, alignment=replace(loss.alignment, adaptive=False))
    with torch.device("meta"):
        tokenizer = build_tokenizer(config)
        choose_trained(tokenizer, recipe.train)
        perceptual = build_perceptual(loss, tokenizer, weights=False)
        adversaries = list(_adversaries(recipe))
    train_mode(tokenizer, recipe.train)
    first, second = (next((a for a in adversaries if a.prefix == prefix), None) for prefix in ("", "second_"))
    discriminator = None if first is None else first.discriminator
    passes = [DiscriminatorPass(adversary) for adversary in adversaries]
    blocks = [part for part in tokenizer.modules() if isinstance(part, tokenizer.recomputed)]
    side = config.image_size

    def run(learner: TokenizerPass, batch: int, watch: Watch) -> None:
        images, draws = torch.zeros(batch, 3, side, side), Draws(0, torch.arange(batch))
        with autocast(recipe.run.precision, CPU):
            terms, made = learner(images, None, 0, None, draws)
        watch.forward_ends()
        sum(terms.values()).backward()
        for adversary, both in zip(adversaries, passes, strict=True):
            with autocast(recipe.run.precision, CPU):
                terms = adversary.terms(*both(made.target, made.reconstruction, draws))
            watch.forward_ends()
            sum(terms.values()).backward()
        for module in (tokenizer, *passes):
            module.zero_grad()

    held = [module for module in (perceptual, *(adversary.lecam for adversary in adversaries)) if module is not None]
    with faked(tokenizer, *held, *(adversary.discriminator for adversary in adversaries)) as tensors:
        objective = TokenizerObjective(
            loss, _not_adaptive(recipe.adversarial), tokenizer, perceptual, discriminator, 1.0, second
        )
        counted = measure(partial(run, TokenizerPass(tokenizer, objective)), tensors, blocks)
    beside = tuple(adversary.discriminator for adversary in adversaries)
    return TrainingPass(counted, tokenizer, (), beside, _bytes_apart(tensors, (tokenizer, *beside)), bool(blocks))


def _adversaries(recipe: TokenizerRecipe) -> Iterator[Adversary]:
    for prefix, config in (("", recipe.adversarial), ("second_", recipe.second_adversarial)):
        if config is not None and config.discriminator != "none":
            weights = "none" if config.discriminator.startswith("dinogan") else config.weights
            size = recipe.tokenizer.image_size
            network = build_discriminator(config.discriminator, size, weights, config.resize)
            yield Adversary(prefix, _not_adaptive(config), network, LeCam() if config.lecam_weight else None)


def _not_adaptive(config: AdversarialConfig) -> AdversarialConfig:
    return replace(config, adaptive_weight=False)


def _bytes_apart(tensors: list[Tensor], modules: tuple[nn.Module, ...]) -> int:
    """Of those of ``tensors`` that are neither parameters nor buffers of the modules."""
    own = {memory(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if memory(tensor) not in own)
