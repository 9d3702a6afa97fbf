"""What the training of a generator works with, built from its recipe. The loop is in ``train_generator.py``."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfmtok import distributed
from vfmtok.code import Ids
from vfmtok.config import config_from_dict
from vfmtok.data.latent_cache import shown
from vfmtok.data.order import evenly_spaced
from vfmtok.errors import ConfigError, DataError, VFMTokError
from vfmtok.generators import build_generator
from vfmtok.generators.contract import Generator, changed
from vfmtok.generators.counter_random import Draws
from vfmtok.generators.drawing import draw_images
from vfmtok.layers.precision import DTYPES, autocast
from vfmtok.pictures.rows import draw_rows
from vfmtok.pretrained import loading as pretrained
from vfmtok.training import construction, passes, run_folder, sharding
from vfmtok.training.chosen_codes import UNIGRAM_RECORDS, chosen_codes, chosen_images, measured_statistics
from vfmtok.training.code_source import CachedCodes, CodeData, EncodedCodes, open_codes, training_codes
from vfmtok.training.code_validation import CodeAlarms, HeldOutCodes, baselines
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.health import SkippedSteps
from vfmtok.training.progress import Between
from vfmtok.training.recipe import Plan
from vfmtok.training.run_log import RunLog
from vfmtok.training.state import RunState
from vfmtok.training.trained_parts import choose_trained, evaluating, train_mode
from vfmtok.weights.checkpoint import CheckpointFolder


class GeneratorRun:
    """Everything the loop works with, built from the recipe.

    Args:
        size: the name of the generator's size ("GPT-B"): which one to take of a published repository.

    Raises:
        VFMTokError: whatever can be found wrong before the first step.
    """

    def __init__(self, recipe: GeneratorRecipe, world: distributed.World, size: str | None = None):
        self.notes: list[str]  # for people
        recipe, self.notes = construction.settle_precision(recipe, world)
        self.recipe, self.world, run = recipe, world, recipe.run
        self.optimizer_config = recipe.optimizer.scaled_to(run.global_batch)
        self.folder = Path(run.results_dir).expanduser()
        with distributed.together():  # what one process alone may fail at ends before all measure something together
            self.data = open_codes(recipe, world)
            self.plan = Plan.of(recipe.optimizer, run, len(self.data), world.size)
        construction.before_models(run)
        self.generator = self._build()
        with distributed.together():  # what could not be drawn is found now, not after the first 5000 steps
            self.sampling = config_from_dict(recipe.pictures.sampling, self.generator.sampling, "pictures.sampling")
        with distributed.together():
            if hasattr(self.generator, "begin_run"):
                self.generator.begin_run(self.plan.steps)
        self.held_out, self.baselines = self._read_held_out()
        # More is better there: for ids it is the log-likelihood of a held-out token.
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints", run.keep, best="log_likelihood")
        with distributed.together():
            choose_trained(self.generator, recipe.train)
            self.notes += construction.start_weights(
                self.generator, run, self.checkpoints, lambda path: pretrained.read_weights(path, "generator", size)
            )
        self.notes += self._normalise()
        train_mode(self.generator, recipe.train)
        self.parameters = sum(parameter.numel() for parameter in self.generator.parameters())
        self.notes.append("; ".join([*self._choose_attention(), self._parallel()]))
        self.alarms = CodeAlarms()
        self.state = self._build_state()
        self.notes += run_folder.resume(self.state, self.checkpoints, self.plan.steps, world)
        if recipe.pictures.every and self.data.tokenizer is None:
            self.notes.append("no pictures: they need the tokenizer (--vq-ckpt)")
        if run.checkpoint_activations:
            self._recompute_activations()
        if run.compile:
            self.generator.compile()
        learner = LossPass(self.generator)
        self.model = passes.wrap(learner, world) if recipe.parallel == "ddp" else learner

    @property
    def hands_images_over(self) -> bool:
        """Whether the generator learns from the images besides their code."""
        return getattr(self.generator, "learns_from_images", False)

    def _held_out_images(self) -> Tensor | None:
        """Those of the held-out codes, for a generator that learns from them. Raises ConfigError."""
        if not self.hands_images_over:
            return None
        data = self.data
        if data.records is None or data.held_out_cache is not None:
            raise ConfigError(
                "this generator learns from images besides their latents, which a cache has not: give --anno-file and "
                "--vq-ckpt instead of --code-path"
            )
        source = data.held_out_records if data.held_out_records is not None else data.records
        return chosen_images(source, data, self.recipe.run.validation_images, self.world, self.recipe)

    def _read_held_out(self) -> tuple[HeldOutCodes, dict[str, float]]:
        """The held-out codes and their baselines: at the start, where what is wrong with them costs nothing yet."""
        data, count = self.data, self.recipe.run.validation_images
        train = data.cache if data.cache is not None else data.records
        held = data.held_out_cache if data.held_out_cache is not None else data.held_out_records
        if held is None:
            self.notes.append("there are no held-out codes: validation looks at training codes")
        code, labels = chosen_codes(held if held is not None else train, data, count, self.world, self.recipe)
        held_out = HeldOutCodes(code, labels, self.plan.micro_batch, self.world, self._held_out_images())
        own = self.generator.code
        if not (isinstance(own, Ids) and hasattr(self.generator, "held_out")):  # its loss is not in nats per token
            return held_out, {}
        if data.cache is not None:
            train_ids, _ = chosen_codes(train, data, UNIGRAM_RECORDS, self.world, self.recipe)
        elif held is not None:
            train_ids, _ = chosen_codes(train, data, count, self.world, self.recipe)
        else:
            train_ids = code
        return held_out, baselines(train_ids, code, own)

    def _normalise(self) -> list[str]:
        """Give a generator of latents the statistics of the training data; a run that continues has them."""
        continues = self.checkpoints.steps() or self.recipe.run.continue_from is not None
        if not hasattr(self.generator, "use_statistics") or continues:
            return []
        device, per = self.world.device, self.generator.normalised
        if per == "none":
            self.generator.use_statistics(torch.zeros(1, device=device), torch.ones(1, device=device))
            return ["latents as they are: generator.normalised is none"]
        statistics = measured_statistics(self.data, self.recipe, self.world, per=per)
        self.generator.use_statistics(statistics.mean.to(device), statistics.std.to(device))
        return [f"latents of {shown(statistics)}, of {statistics.count:,}"]

    def _choose_attention(self) -> list[str]:
        """The faster kernel, as the first process measures it: all must round alike."""
        if not hasattr(self.generator, "fastest_attention"):
            return []
        dtype = DTYPES[self.recipe.run.precision]
        found = self.generator.fastest_attention(self.world.device, dtype, self.plan.micro_batch)
        path = distributed.gather(found)[0]
        self.generator.use_attention(path)
        return [f"attention by {path}"]

    def _recompute_activations(self) -> None:
        if hasattr(self.generator, "checkpoint_activations"):
            self.generator.checkpoint_activations = True
        else:
            self.notes.append("run.checkpoint_activations has no effect: this generator keeps its activations")

    def _build(self) -> Generator:
        """On this process's device: whole, or the slices that it keeps."""
        recipe, device = self.recipe, self.world.device
        if recipe.parallel == "ddp":
            return build_generator(recipe.generator).to(device)

        def shard(generator: Generator) -> None:
            layers, methods = getattr(generator, "layers", ()), getattr(generator, "sharded_methods", ())
            sharding.shard(generator, layers, methods, recipe.run.precision)

        return sharding.build_sharded(lambda: build_generator(recipe.generator), shard, device)

    def _parallel(self) -> str:
        if self.recipe.parallel == "fsdp":
            return f"weights and optimizer spread over {self.world.size} processes (FSDP2)"
        return "one process" if self.world.size == 1 else f"a copy in each of {self.world.size} processes (DDP)"

    def _build_state(self) -> RunState:
        recipe, generator = self.recipe, self.generator
        named = dict(generator.named_parameters())
        if hasattr(generator, "decayed"):
            decayed = generator.decayed()
        else:
            decayed = {name for name, parameter in named.items() if parameter.ndim >= 2}
        groups = [
            {"params": [parameter for name, parameter in named.items() if name in decayed]},
            {"params": [parameter for name, parameter in named.items() if name not in decayed], "weight_decay": 0.0},
        ]
        stepper = construction.stepper(generator, groups, self.optimizer_config, recipe.run)
        self.notes += construction.optimizer_notes(stepper, self.world)
        self.skipped = {"model": SkippedSteps(self.world.device)}
        numbers = {"skipped": self.skipped["model"], "tokens": CodeFacts(self.data), "token_alarms": self.alarms}
        average = construction.average(generator, recipe.ema)
        data = {"samples": len(self.data), "fingerprint": self.data.fingerprint}
        modules, steppers = {"model": generator}, {"model": stepper}
        return RunState(recipe, "generator", modules, steppers, average, numbers=numbers, data=data)

    # ---- what the loop asks for ------------------------------------------------------------

    @property
    def draws(self) -> bool:
        """Whether pictures are wanted and can be made."""
        return self.data.tokenizer is not None and self.recipe.pictures.every > 0

    def autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.recipe.run.precision, self.world.device)

    def codes(self) -> CachedCodes | EncodedCodes:
        return training_codes(self.data, self.recipe, self.world, self.state.samples_seen, self.plan.micro_batch)

    def observed(self) -> dict[str, Tensor]:
        """Scalars besides the losses, of the last pass."""
        return self.generator.observed() if hasattr(self.generator, "observed") else {}

    def note_step(self, step: int) -> None:
        """For a generator whose loss depends on the step."""
        if hasattr(self.generator, "step"):
            self.generator.step = step

    def more_numbers(self, steps_per_second: float) -> dict[str, float]:
        code = self.generator.code
        if not isinstance(code, Ids):
            return {}
        return {"tokens_per_second": steps_per_second * self.recipe.run.global_batch * code.num_tokens}

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Of the names of what is measured and drawn: with the weights themselves, and with their average."""
        return ("",) if self.state.ema is None else ("", "ema_")

    @contextlib.contextmanager
    def _computing_with(self, prefix: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if prefix:
                stack.enter_context(self.state.ema.swapped_in())
            stack.enter_context(sharding.gathered_for(self.generator))
            stack.enter_context(evaluating(self.generator, self.recipe.train))
            yield

    @property
    def held_out_name(self) -> str:
        held = self.data.held_out_cache is not None or self.data.held_out_records is not None
        return "held-out" if held else "training"

    def validate(self, log: RunLog, between: Between) -> None:
        """Measure the weights and their average on held-out codes."""
        step, held_out, known = self.state.step, self.held_out, self.baselines
        metrics: dict[str, float] = {}
        for prefix in self.prefixes:
            with self._computing_with(prefix):
                values = held_out.measure(self.generator, self.autocast, between)
            metrics |= {f"{prefix}{name}": value for name, value in values.items()}
        best = min(metrics["loss"], metrics.get("ema_loss", float("inf")))
        self.state.metrics = {**metrics, "step": step, "log_likelihood": -best}
        log.scalars(step, {f"validation/{name}": value for name, value in {**metrics, **known}.items()})
        listed = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        unit = "nats per token of " if known else ""
        floors = "; " + ", ".join(f"{name} {value:.3f}" for name, value in known.items()) if known else ""
        log.say(f"step {step}: {listed} ({unit}{len(held_out.code)} {self.held_out_name} samples{floors})")
        warmed_up = step > self.plan.warmup_steps
        for line in self.alarms.check(best, known.get("unigram", float("inf")), warmed_up):
            log.alarm(step, line)

    def owes_pictures(self) -> bool:
        """Whether the run ended at a step of pictures before they were drawn. All processes say the same."""
        step, every = self.state.step, self.recipe.pictures.every
        if step == 0 or (step % every and step != self.plan.steps):
            return False
        last = "samples" if self.state.ema is None else "ema_samples"
        return not distributed.gather((self.folder / "pictures" / f"{last}_{step:07d}.png").exists())[0]

    def draw(self, log: RunLog, between: Between) -> None:
        """Images of fixed classes and seeds, by the weights and by their average. No run ends for want of them."""
        config, step, tokenizer = self.recipe.pictures, self.state.step, self.data.tokenizer
        chosen = evenly_spaced(config.classes, self.generator.num_classes).tolist()
        labels = torch.tensor(chosen).repeat_interleave(config.per_class)
        settings = {**dataclasses.asdict(self.sampling), "seed": config.seed}
        names = [self.data.classes[label] if self.data.classes else f"class {label}" for label in chosen]
        size = tokenizer.config.image_size
        batch = 8 if self.world.device.type == "cpu" else 32  # a run that is to stop waits for one
        for prefix in self.prefixes:
            try:
                with self._computing_with(prefix), self.autocast():
                    pixels = draw_images(
                        self.generator, tokenizer, labels, size, batch, self.world, between, **settings
                    )
            except VFMTokError as error:  # in all processes, or in none
                log.alarm(step, f"no picture of {prefix}samples: {error}")
                continue
            rows = pixels.reshape(len(chosen), config.per_class, size, size, 3)
            weights = "average of the weights" if prefix else "weights"
            drawn = ", ".join([self.sampling.guidance, *changed(self.sampling)])
            title = f"step {step}, {weights}: {drawn}, seed {config.seed}"
            log.picture(step, f"{prefix}samples", draw_rows(rows, names, title))


class LossPass(nn.Module):
    """A generator's loss as a forward pass, as DDP wants it."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, code: Tensor, labels: Tensor, draws: Draws, images: Tensor | None = None) -> dict[str, Tensor]:
        """code (B,...), labels (B,), for a generator that wants them images (B,3,S,S) -> named float32 scalars."""
        return self.generator.loss(code, labels, draws, **({} if images is None else {"images": images}))


class CodeFacts:
    """What a checkpoint says of the codes it was trained on; it continues with codes of the same tokenizer only."""

    def __init__(self, data: CodeData):
        self.facts: dict[str, Any] = {"classes": data.classes, "tokenizer_hash": data.tokenizer_hash}

    def state_dict(self) -> dict[str, Any]:
        return self.facts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DataError if the codes would mean something else."""
        for key, name in (("tokenizer_hash", "the codes of another tokenizer"), ("classes", "other classes")):
            if state[key] != self.facts[key]:
                raise DataError(f"the checkpoint was trained on {name}; give another --results-dir, or the same data")
