"""Training a generator: the one visible loop behind ``train_c2i.py``, for every family of ``GENERATORS``.

The same command again continues from the last checkpoint, to the same weights: what a sample draws (its crop, whether
its label is dropped, ...) is a function of (seed, its position in the run), the dropout masks inside layers of (seed,
step, rank). One process and many run the same code.
"""

import contextlib
from pathlib import Path

from vfmtok import distributed
from vfmtok.generators.counter_random import Draws
from vfmtok.training import passes, run_folder
from vfmtok.training.code_source import CachedCodes, EncodedCodes
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.generator_run import GeneratorRun
from vfmtok.training.interruption import StopRequest
from vfmtok.training.optimizer import learning_rate
from vfmtok.training.progress import Progress
from vfmtok.training.run_log import RunLog
from vfmtok.training.saving import BackgroundSaver, Saver, saver
from vfmtok.weights.checkpoint import seed_step


def train_generator(recipe: GeneratorRecipe, world: distributed.World, size: str | None = None) -> None:
    """Train from the last checkpoint in ``recipe.run.results_dir``, or from the beginning, to the end.

    Args:
        world: this process among the others.
        size: the name of the generator's size ("GPT-B"): which one to take of a published repository.

    Raises:
        VFMTokError: whatever is wrong with the recipe, the data or the weights; or the run diverged.
    """
    with run_folder.locked(Path(recipe.run.results_dir).expanduser(), world):
        with distributed.together():
            run = GeneratorRun(recipe, world, size)
            if world.is_main:
                run_folder.prepare(run.folder, run.state.recipe)
        log = run_folder.open_log(run.folder, run.state, run.plan.steps, world)
        with (
            contextlib.closing(log),
            contextlib.closing(run.codes()) as codes,
            StopRequest() as stop,
            saver(recipe.run, run.checkpoints, log, world) as saves,
        ):
            for line in [_summary(run), *run.notes]:
                log.say(line)
            _train(run, log, codes, saves, stop)


def _train(
    run: GeneratorRun,
    log: RunLog,
    codes: CachedCodes | EncodedCodes,
    saves: Saver | BackgroundSaver,
    stop: StopRequest,
) -> None:
    recipe, plan, state, world = run.recipe, run.plan, run.state, run.world
    stepper, seed = state.steppers["model"], recipe.run.seed % 2**64
    progress = Progress(
        state, plan, world, saves, log, stop, codes, len(run.data), run.skipped, run.validate,
        draw=run.draw if run.draws else None, owes_pictures=run.owes_pictures, picture_steps=recipe.pictures.every,
        more_numbers=run.more_numbers,
    )  # fmt: skip
    progress.begin()

    while progress.steps_are_left:
        step = state.step
        seed_step(recipe.run.seed, step, world.rank)
        run.note_step(step)
        batch = next(codes)
        lr = learning_rate(run.optimizer_config, step, plan.warmup_steps, plan.steps)

        tensors = [batch.code, batch.labels, batch.positions, *([batch.images] if run.hands_images_over else [])]
        for last, part in passes.micro_batches(plan.micro_batch, *tensors):
            code, labels, positions, *images = (
                tensor.to(world.device, non_blocking=True) for tensor in part
            )  # (b,...), 2 x (b,)
            with passes.synced(run.model, last):
                with run.autocast():
                    terms = run.model(code, labels, Draws(seed, positions), *images)
                    loss = sum(terms.values())
                stepper.backward(loss / recipe.run.accumulation)
            losses = {**terms, "total": loss}
            progress.meter.add({f"loss/{name}": term for name, term in losses.items()} | run.observed())

        norm = stepper.step(lr)
        if state.ema is not None:
            state.ema.update(step, recipe.ema.decay_by_images(state.samples_seen, recipe.run.global_batch))
        progress.after_step(batch.samples_seen, losses, {"model": norm}, lr)
    progress.finish(run.folder)


def _summary(run: GeneratorRun) -> str:
    recipe, plan, world = run.recipe, run.plan, run.world
    cache = run.data.cache
    source = str(cache) if cache is not None else f"images of {run.data.records.path}"
    if cache is not None and cache.num_ranks > 1:
        source += f" ({cache.num_ranks} sequences of each of its {len(cache)} images)"
    shares = passes.in_words(world, recipe.run.accumulation, plan.micro_batch)
    return (
        f"generator of {run.parameters / 1e6:.2f} M parameters, {len(run.data)} samples of the {source}, "
        f"{plan.steps} steps of {recipe.run.global_batch}{shares}, learning rate {run.optimizer_config.lr:.3g}, "
        f"autocast {recipe.run.precision}, on {world.device}; validated on {run.held_out_name} samples"
    )
