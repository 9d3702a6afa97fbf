"""What the training of a tokenizer works with, built from its recipe. The loop is in ``train_tokenizer.py``."""

import contextlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from vfmtok import distributed
from vfmtok.code import Ids
from vfmtok.data.dataset_folder import open_for_training
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import SampleOrder
from vfmtok.data.training_crop import training_crop
from vfmtok.discriminators.build import build_discriminator
from vfmtok.encoders.config import for_training
from vfmtok.errors import ConfigError, DataError
from vfmtok.layers.memory_format import LARGE_IMAGE, Convolutional, weights_learn_faster_in_nchw
from vfmtok.layers.precision import autocast
from vfmtok.losses.adversarial import LeCam
from vfmtok.pretrained import loading as pretrained
from vfmtok.tokenizers import build_tokenizer
from vfmtok.training import construction, passes, run_folder
from vfmtok.training.adversaries import Adversary, DiscriminatorPass
from vfmtok.training.codebook_care import CodebookCare
from vfmtok.training.ema import EMA
from vfmtok.training.equivariance import check_transformations
from vfmtok.training.health import LossBounds, SkippedSteps
from vfmtok.training.objective import TokenizerObjective, build_perceptual
from vfmtok.training.optimizer import FIRST_SCALE, Stepper
from vfmtok.training.recipe import AdversarialConfig, Plan, TokenizerRecipe
from vfmtok.training.schedule import require_quantized_steps
from vfmtok.training.state import RunState
from vfmtok.training.tokenizer_passes import TokenizerPass, checkpoint_activations
from vfmtok.training.trained_parts import choose_trained, train_mode
from vfmtok.training.validation import HeldOut, best_metric
from vfmtok.weights.checkpoint import CheckpointFolder


class TokenizerRun:
    """Everything the loop works with, built from the recipe.

    Raises:
        VFMTokError: whatever can be found wrong before the first step.
    """

    def __init__(self, recipe: TokenizerRecipe, world: distributed.World):
        self.notes: list[str]  # for people
        recipe, self.notes = construction.settle_precision(recipe, world)
        self.recipe, self.world, run = recipe, world, recipe.run
        self.folder = Path(run.results_dir).expanduser()
        with distributed.together():  # what one process alone may fail at ends before all do something together
            self._open_data()
            self._build_models()
            self._build_state()
        self._choose_memory_format()
        self.notes += run_folder.resume(self.state, self.checkpoints, self.plan.steps, world)
        if run.checkpoint_activations:
            checkpoint_activations(self.tokenizer, self.tokenizer.recomputed)
        if run.compile:
            self.tokenizer.compile()
        self.model = passes.wrap(
            TokenizerPass(self.tokenizer, self.objective), world, find_unused=self.objective.may_leave_parts_out
        )
        for adversary in self.adversaries:
            adversary.both = passes.wrap(DiscriminatorPass(adversary), world)

    def _open_data(self) -> None:
        recipe, run = self.recipe, self.recipe.run
        self.records, held_out = open_for_training(recipe.data.path, recipe.data.val_path, recipe.data.shards)
        self.notes += self.records.notes
        self.plan = Plan.of(recipe.optimizer, run, len(self.records), self.world.size)
        require_quantized_steps(recipe.codebook.continuous_steps, self.plan.steps)
        self.held_out_name = "held-out" if held_out is not None else "training"
        if held_out is None:
            self.notes.append("there is no held-out set: validation looks at training images")
        self.held_out = HeldOut(
            held_out if held_out is not None else self.records,
            recipe.tokenizer.image_size,
            run.validation_images,
            self.plan.micro_batch,
            self.world,
            recipe.data.num_workers,
        )
        if self.held_out.count == 0:
            raise DataError(f"{self.held_out.records.path} holds no images to validate on")

    def _build_models(self) -> None:
        recipe, run, world = self.recipe, self.recipe.run, self.world
        construction.before_models(run)
        self.tokenizer = build_tokenizer(for_training(recipe.tokenizer))
        choose_trained(self.tokenizer, recipe.train)
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints", run.keep)
        self.notes += construction.start_weights(
            self.tokenizer, run, self.checkpoints, lambda path: pretrained.read_weights(path, "tokenizer")
        )
        self.tokenizer.to(world.device)
        self._synchronise_batch_norm()
        train_mode(self.tokenizer, recipe.train)
        check_transformations(recipe.equivariance, self.tokenizer)
        self.perceptual = build_perceptual(recipe.loss, self.tokenizer)
        self.adversaries = self._build_adversaries()
        for module in (self.perceptual, *(m for adversary in self.adversaries for m in adversary.modules.values())):
            if module is not None:
                module.to(world.device)
        scale = FIRST_SCALE if run.precision == "fp16" else 1.0
        first, second = (
            next((adversary for adversary in self.adversaries if adversary.prefix == prefix), None)
            for prefix in ("", "second_")
        )
        discriminator = None if first is None else first.discriminator
        self.objective = TokenizerObjective(
            recipe.loss, recipe.adversarial, self.tokenizer, self.perceptual, discriminator, scale, second
        )
        self.notes += self.objective.notes

    def _choose_memory_format(self) -> None:
        """Of maps whose convolutions learn in float32 on a CPU, as the first process's suits: all must round alike."""
        networks = [part for part in self.tokenizer.modules() if isinstance(part, Convolutional) and part.training]
        large = self.recipe.tokenizer.image_size >= LARGE_IMAGE
        if not (networks and large and self.world.device.type == "cpu" and self.recipe.run.precision == "none"):
            return
        if distributed.gather(weights_learn_faster_in_nchw())[0]:
            for network in networks:
                network.training_format = torch.contiguous_format
            self.notes.append("convolutions learn in NCHW, where this CPU is faster at their weights' gradients")

    def _synchronise_batch_norm(self) -> None:
        """Of what is trained. Frozen parts keep their statistics."""
        if self.world.size == 1:
            return
        learning = [part for part in self.tokenizer.children() if any(p.requires_grad for p in part.parameters())]
        if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for part in learning for m in part.modules()):
            return
        if self.world.device.type == "cuda":
            for part in learning:
                nn.SyncBatchNorm.convert_sync_batchnorm(part)  # in place, below the top
        else:
            self.notes.append("batch norm sees one process's images: PyTorch synchronises it on GPUs only")

    def _build_adversaries(self) -> list[Adversary]:
        """Those that learn before the end of the run, the first and the second."""
        sections = {"": self.recipe.adversarial, "second_": self.recipe.second_adversarial}
        found = [self._build_adversary(prefix, config) for prefix, config in sections.items() if config is not None]
        return [adversary for adversary in found if adversary is not None]

    def _build_adversary(self, prefix: str, config: AdversarialConfig) -> Adversary | None:
        if config.discriminator == "none":
            return None
        if config.learns_from >= self.plan.steps:  # it would never be asked
            self.notes.append(
                f"no {config.discriminator} discriminator: it would learn from step {config.learns_from}, the run has "
                f"{self.plan.steps} ({'--disc-start' if not prefix else 'second_adversarial.start'})"
            )
            return None
        discriminator = build_discriminator(
            config.discriminator, self.recipe.tokenizer.image_size, config.weights, config.resize
        )
        if self.recipe.equivariance.enabled and not getattr(discriminator, "takes_any_size", False):
            raise ConfigError(f"equivariance.enabled: the {config.discriminator} discriminator sees one size of images")
        adversary = Adversary(prefix, config, discriminator, LeCam() if config.lecam_weight else None)
        if config.start_from is not None:
            self.notes += construction.start_discriminator(adversary.modules, config.start_from, self.checkpoints)
        return adversary

    def _build_state(self) -> None:
        recipe, run, device = self.recipe, self.recipe.run, self.world.device
        modules = {"model": self.tokenizer}
        modules |= {adversary.name: adversary.discriminator for adversary in self.adversaries}
        steppers = {
            name: construction.stepper(
                module, [{"params": list(module.parameters())}], recipe.optimizer, run, f"the {name}"
            )
            for name, module in modules.items()
        }
        self.notes += construction.optimizer_notes(steppers["model"], self.world)
        self.bounds = self._build_bounds()
        self.skipped = {
            name: SkippedSteps(device, name, " or its losses out of bounds" if name in self.bounds else "")
            for name in modules
        }
        for adversary in self.adversaries:
            modules |= adversary.modules
        average = construction.average(self.tokenizer, recipe.ema)
        self.care = self._build_care(average, steppers["model"])
        self.state = RunState(
            replace(recipe, tokenizer=self.tokenizer.config),
            "tokenizer",
            modules,
            steppers,
            average,
            tensors={"codebook": self.care} if self.care is not None else {},
            numbers={"skipped" if n == "model" else f"skipped_{n}": skipped for n, skipped in self.skipped.items()}
            | {f"bounds_{name}": bounds for name, bounds in self.bounds.items()},
            data={"samples": len(self.records), "fingerprint": self.records.fingerprint},
        )
        self.checkpoints.best = best_metric(self.state, bool(self.adversaries))

    def _build_bounds(self) -> dict[str, LossBounds]:
        """By the network whose steps are skipped by them: where the recipe has such bounds."""
        loss, device = self.recipe.loss, self.world.device
        found = {
            adversary.name: LossBounds((adversary.name,), device, most=adversary.config.max_loss)
            for adversary in self.adversaries
            if adversary.config.max_loss is not None
        }
        if loss.jump_factor is not None:
            found["model"] = LossBounds(self.objective.image_losses, device, loss.jump_factor, loss.jump_from_image)
        return found

    def _build_care(self, average: EMA | None, stepper: Stepper) -> CodebookCare | None:
        """Of discrete codes; only counting, where the family does not name the ``quantizers`` of its segments."""
        config, code = self.recipe.codebook, self.tokenizer.code
        if not isinstance(code, Ids):
            return None
        names = getattr(self.tokenizer, "quantizers", ())
        quantizers = [getattr(self.tokenizer, name) for name in names]
        learned = [getattr(quantizer, "codebook", None) for quantizer in quantizers]
        untrained = any(codebook is None or not codebook.requires_grad for codebook in learned) or not learned
        if (config.kmeans or config.revive) and untrained:
            raise ConfigError("codebook.kmeans and codebook.revive need codebooks that are trained")
        if config.continuous_steps and not quantizers:
            raise ConfigError("codebook.continuous_steps needs a tokenizer whose quantizers can be left out")
        kept = {} if average is None else average.average
        averages = [[kept[key] for key in (f"{name}.codebook",) if key in kept] for name in names]
        return CodebookCare(
            quantizers,
            averages,
            stepper.optimizer,
            config,
            self.recipe.run.global_batch,
            self.recipe.run.seed,
            self.world.device,
            code,
        )

    # ---- what the loop asks for ------------------------------------------------------------

    def learning_adversaries(self, step: int) -> list[Adversary]:
        """Not before ``learns_from`` of their section, nor when the tokenizer no longer sees them."""
        return [
            adversary
            for adversary in self.adversaries
            if step >= adversary.config.learns_from
            and not self.objective.adversarial_is_over(step, self.state.samples_seen, adversary.prefix)
        ]

    def autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.recipe.run.precision, self.world.device)

    def loader(self) -> ImageLoader:
        recipe, run, world = self.recipe, self.recipe.run, self.world
        crop = training_crop(recipe.data.crop, recipe.tokenizer.image_size, run.seed, recipe.data.flip)
        count, sizes = len(self.records), self.records.shard_sizes
        order = SampleOrder(
            count, run.global_batch, run.seed, world_size=world.size, rank=world.rank, shard_sizes=sizes
        )
        seen = self.state.samples_seen
        return ImageLoader(self.records, crop, order, samples_seen=seen, num_workers=recipe.data.num_workers)
