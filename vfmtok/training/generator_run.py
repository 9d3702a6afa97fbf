"""What the training of a generator works with, built from its recipe. The loop is in ``train_gpt.py``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vfmtok import distributed
from vfmtok.errors import DataError, VFMTokError
from vfmtok.generators.causal_attention import attention_path
from vfmtok.generators.drawing import draw_images
from vfmtok.generators.gpt.model import GPT
from vfmtok.layers.precision import DTYPES, autocast
from vfmtok.pictures.rows import draw_rows
from vfmtok.pretrained import loading as pretrained
from vfmtok.training import passes, run_folder, sharding
from vfmtok.training.code_source import (
    UNIGRAM_RECORDS,
    CachedTokens,
    EncodedTokens,
    TokenData,
    chosen_tokens,
    evenly_spaced,
    open_tokens,
    training_tokens,
)
from vfmtok.training.code_validation import HeldOutTokens, TokenAlarms, baselines
from vfmtok.training.ema import EMA
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.health import SkippedSteps
from vfmtok.training.optimizer import Stepper, build_optimizer
from vfmtok.training.recipe import Plan
from vfmtok.training.run_log import RunLog
from vfmtok.training.state import RunState
from vfmtok.weights.checkpoint import CheckpointFolder, seed_step
from vfmtok.weights.name_maps import own_tensors


class GeneratorRun:
    """Everything the loop works with, built from the recipe.

    Args:
        start_from: a checkpoint folder of another run to continue from, if this run has none of its own.
        finetune_from: weights to begin with, ours or released.
        size: the name of the generator's size ("GPT-B"): which one to take of a published repository.

    Raises:
        VFMTokError: whatever can be found wrong before the first step.
    """

    def __init__(
        self,
        recipe: GeneratorRecipe,
        world: distributed.World,
        start_from: Path | None = None,
        finetune_from: Path | None = None,
        size: str | None = None,
    ):
        self.recipe, self.world = recipe, world
        run = recipe.run
        self.optimizer_config = recipe.optimizer.scaled_to(run.global_batch)
        self.folder = Path(run.results_dir).expanduser()
        with distributed.together():  # what one process alone may fail at ends before all measure something together
            self.data = open_tokens(recipe, world)
            self.plan = Plan.of(recipe.optimizer, run, len(self.data), world.size)
        self.held_out, self.baselines = self._read_held_out()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = run.tf32
        seed_step(run.seed, -1, 0)  # the first weights
        self.gpt = self._build()
        self.notes: list[str] = []  # for people
        # More is better there: the log-likelihood of a held-out token.
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints", run.keep, best="log_likelihood")
        with distributed.together():
            if finetune_from is not None and not self.checkpoints.steps():  # else it is this run that goes on
                weights = pretrained.read_weights(finetune_from, "generator", size)
                self.notes += pretrained.load_matching(self.gpt, weights, sharding.keep_slice)
        self.gpt.train()
        self.parameters = sum(parameter.numel() for parameter in self.gpt.parameters())
        self.notes.append(f"attention by {self._choose_attention()}; {self._parallel()}")
        self.alarms = TokenAlarms()
        self.state = self._build_state()
        self.skipped = self.state.numbers["skipped"]
        self.notes += run_folder.resume(self.state, self.checkpoints, start_from, self.plan.steps, world)
        if recipe.pictures.every and self.data.tokenizer is None:
            self.notes.append("no pictures: they need the tokenizer (--vq-ckpt)")
        self.gpt.checkpoint_activations = run.checkpoint_activations
        if run.compile:
            self.gpt.compile()
        self.model = passes.wrap(self.gpt, world) if recipe.parallel == "ddp" else self.gpt

    def _read_held_out(self) -> tuple[HeldOutTokens, dict[str, float]]:
        """The held-out ids and their baselines: at the start, where what is wrong with them costs nothing yet."""
        data, count = self.data, self.recipe.run.validation_images
        train = data.cache if data.cache is not None else data.records
        held = data.held_out_cache if data.held_out_cache is not None else data.held_out_records
        ids, labels = chosen_tokens(held if held is not None else train, data, count, self.world, self.recipe)
        if data.cache is not None:
            train_ids, _ = chosen_tokens(train, data, UNIGRAM_RECORDS, self.world, self.recipe)
        elif held is not None:
            train_ids, _ = chosen_tokens(train, data, count, self.world, self.recipe)
        else:
            train_ids = ids
        found = baselines(train_ids, ids, self.recipe.generator.vocab_size)
        return HeldOutTokens(ids, labels, self.plan.micro_batch, self.world), found

    def _choose_attention(self) -> str:
        """The faster kernel, as the first process measures it: all must round alike."""
        config, dtype = self.recipe.generator, DTYPES[self.recipe.run.precision]
        shape = (self.plan.micro_batch, config.num_tokens, config.n_head, config.head_dim)
        path = distributed.gather(attention_path(self.world.device, dtype, *shape))[0]
        self.gpt.use_attention(path)
        return path

    def _build(self) -> GPT:
        """On this process's device: whole, or the slices that it keeps."""
        recipe, device = self.recipe, self.world.device
        if recipe.parallel == "ddp":
            return GPT(recipe.generator).to(device)

        def shard(gpt: GPT) -> None:
            sharding.shard(gpt, gpt.layers, ("prefill", "decode_step"), recipe.run.precision)

        return sharding.build_sharded(lambda: GPT(recipe.generator), shard, device)

    def _parallel(self) -> str:
        if self.recipe.parallel == "fsdp":
            return f"weights and optimizer spread over {self.world.size} processes (FSDP2)"
        return "one process" if self.world.size == 1 else f"a copy in each of {self.world.size} processes (DDP)"

    def _build_state(self) -> RunState:
        recipe, config = self.recipe, self.optimizer_config
        matrices = [parameter for parameter in self.gpt.parameters() if parameter.ndim >= 2]
        vectors = [parameter for parameter in self.gpt.parameters() if parameter.ndim < 2]
        optimizer = build_optimizer(config, [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])
        stepper = Stepper(optimizer, matrices + vectors, config.max_grad_norm, recipe.run.precision == "fp16")
        ema = EMA(own_tensors(self.gpt), recipe.ema.decay, recipe.ema.warmup) if recipe.ema.enabled else None
        skipped, facts = SkippedSteps(self.world.device), TokenFacts(self.data)
        numbers = {"skipped": skipped, "tokens": facts, "token_alarms": self.alarms}
        data = {"samples": len(self.data), "fingerprint": self.data.fingerprint}
        return RunState(recipe, "generator", {"model": self.gpt}, {"model": stepper}, ema, numbers=numbers, data=data)

    # ---- what the loop asks for ------------------------------------------------------------

    @property
    def draws(self) -> bool:
        """Whether pictures are wanted and can be made."""
        return self.data.tokenizer is not None and self.recipe.pictures.every > 0

    def autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.recipe.run.precision, self.world.device)

    def tokens(self) -> CachedTokens | EncodedTokens:
        return training_tokens(self.data, self.recipe, self.world, self.state.samples_seen, self.plan.micro_batch)

    def averages(self) -> Iterator[str]:
        """A loop over the weights to judge: within it the GPT computes with the live ones (""), then with the average
        ("ema_")."""
        with sharding.gathered_for(self.gpt):
            yield ""
        if self.state.ema is not None:
            with self.state.ema.swapped_in(), sharding.gathered_for(self.gpt):
                yield "ema_"

    @property
    def held_out_name(self) -> str:
        held = self.data.held_out_cache is not None or self.data.held_out_records is not None
        return "held-out" if held else "training (there is no held-out set)"

    def validate(self, log: RunLog) -> None:
        """Measure the weights and their average on held-out ids."""
        step, held_out, known = self.state.step, self.held_out, self.baselines
        self.gpt.eval()
        metrics: dict[str, float] = {}
        for prefix in self.averages():
            values = held_out.measure(self.gpt, self.autocast)
            metrics |= {f"{prefix}{name}": value for name, value in values.items()}
        self.gpt.train()
        best = min(metrics["loss"], metrics.get("ema_loss", float("inf")))
        self.state.metrics = {**metrics, "step": step, "log_likelihood": -best}
        log.scalars(step, {f"validation/{name}": value for name, value in {**metrics, **known}.items()})
        told = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        floors = ", ".join(f"{name} {value:.3f}" for name, value in known.items())
        log.say(f"step {step}: {told} (nats per token of {len(held_out.ids)} {self.held_out_name} samples; {floors})")
        for line in self.alarms.check(best, known["unigram"], step > self.plan.warmup_steps):
            log.alarm(step, line)

    def owes_picture(self) -> bool:
        """Whether the run ended at a step of pictures before they were drawn. All processes say the same."""
        step, every = self.state.step, self.recipe.pictures.every
        if not self.draws or step == 0 or (step % every and step != self.plan.steps):
            return False
        last = "samples" if self.state.ema is None else "ema_samples"
        return not distributed.gather((self.folder / "pictures" / f"{last}_{step:07d}.png").exists())[0]

    def draw(self, log: RunLog) -> None:
        """Images of fixed classes and seeds, by the weights and by their average. No run ends for want of them."""
        config, step, tokenizer = self.recipe.pictures, self.state.step, self.data.tokenizer
        chosen = evenly_spaced(self.recipe.generator.num_classes, config.classes).tolist()
        labels = torch.tensor(chosen).repeat_interleave(config.per_class)
        settings = {name: getattr(config, name) for name in ("cfg_scale", "top_k", "top_p", "temperature", "seed")}
        names = [self.data.classes[label] if self.data.classes else f"class {label}" for label in chosen]
        size = tokenizer.config.image_size
        for prefix in self.averages():
            try:
                with self.autocast():
                    pixels = draw_images(self.gpt, tokenizer, labels, size, 32, self.world, **settings)
            except VFMTokError as error:  # in all processes, or in none
                log.alarm(step, f"no picture of {prefix}samples: {error}")
                continue
            rows = pixels.reshape(len(chosen), config.per_class, size, size, 3)
            title = f"step {step}: guidance {config.cfg_scale:g}, seed {config.seed}"
            log.picture(step, f"{prefix}samples", draw_rows(rows, names, title))


class TokenFacts:
    """What a checkpoint tells of the ids it was trained on; it goes on with ids of the same tokenizer only."""

    def __init__(self, data: TokenData):
        self.facts: dict[str, Any] = {"classes": data.classes, "tokenizer_hash": data.tokenizer_hash}

    def state_dict(self) -> dict[str, Any]:
        return self.facts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DataError if the ids would mean something else."""
        for key, name in (("tokenizer_hash", "the tokens of another tokenizer"), ("classes", "other classes")):
            if state[key] != self.facts[key]:
                raise DataError(f"the checkpoint was trained on {name}; give another --results-dir, or the same data")
