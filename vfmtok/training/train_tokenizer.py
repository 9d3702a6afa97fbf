"""Training a tokenizer: the one visible loop behind ``vq_train.py``, for every family of ``TOKENIZERS``.

The same command again continues from the last checkpoint, to the same weights: every random number is a function of
(seed, step, rank), every crop of (seed, epoch, image). One process and many run the same code.
"""

import contextlib
from functools import partial
from pathlib import Path

import torch

from vfmtok import distributed
from vfmtok.data.transforms import to_unit_range
from vfmtok.generators.counter_random import Draws
from vfmtok.training import passes, run_folder
from vfmtok.training.codebook_care import start_codebooks
from vfmtok.training.equivariance import drawn_transformation
from vfmtok.training.interruption import StopRequest
from vfmtok.training.optimizer import learning_rate
from vfmtok.training.progress import Progress
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.training.run_log import RunLog
from vfmtok.training.saving import BackgroundSaver, Saver, saver
from vfmtok.training.tokenizer_run import TokenizerRun
from vfmtok.training.validation import validate
from vfmtok.weights.checkpoint import seed_step


def train_tokenizer(recipe: TokenizerRecipe, world: distributed.World) -> None:
    """Train from the last checkpoint in ``recipe.run.results_dir``, or from the beginning, to the end.

    Args:
        world: this process among the others.

    Raises:
        VFMTokError: whatever is wrong with the recipe, the data or the weights; or the run diverged.
    """
    with run_folder.locked(Path(recipe.run.results_dir).expanduser(), world):
        with distributed.together():
            run = TokenizerRun(recipe, world)
            run.held_out.read()  # bad images there shall not end the run at its first validation
            if world.is_main:
                run_folder.prepare(run.folder, run.state.recipe)
        log = run_folder.open_log(run.folder, run.state, run.plan.steps, world)
        with (
            contextlib.closing(log),
            contextlib.closing(run.loader()) as loader,
            StopRequest() as stop,
            saver(recipe.run, run.checkpoints, log, world) as saves,
        ):
            for line in [_summary(run), *run.notes]:
                log.say(line)
            _train(run, log, loader, saves, stop)


def _train(run: TokenizerRun, log: RunLog, loader, saves: Saver | BackgroundSaver, stop: StopRequest) -> None:
    recipe, plan, state, world, care = run.recipe, run.plan, run.state, run.world, run.care
    steppers, accumulation, seed = state.steppers, recipe.run.accumulation, recipe.run.seed % 2**64
    progress = Progress(
        state, plan, world, saves, log, stop, loader, len(run.records), run.skipped, partial(validate, run),
        more_numbers=lambda rate: {} if care is None else care.numbers(),
        shown=(("loss", "loss/total"), ("pixel", "loss/pixel"), ("codes", "codebook/usage")),
    )  # fmt: skip
    progress.begin()

    while progress.steps_are_left:
        step = state.step
        seed_step(recipe.run.seed, step, world.rank)
        if recipe.codebook.kmeans and step == recipe.codebook.continuous_steps:
            start_codebooks(run)
        if care is not None:
            care.before_step(step)
        adversaries = run.learning_adversaries(step)
        transformation = drawn_transformation(recipe.equivariance, recipe.run.seed, step)
        batch = next(loader)
        positions = torch.from_numpy(loader.order.positions(batch.samples_seen))  # (B,)
        lr = learning_rate(recipe.optimizer, step, plan.warmup_steps, plan.steps)

        for last, (part, samples) in passes.micro_batches(plan.micro_batch, batch.images, positions):
            images = to_unit_range(part.to(world.device, non_blocking=True))  # (b,3,S,S)
            draws = Draws(seed, samples.to(world.device, non_blocking=True))
            with passes.synced(run.model, last):
                with run.autocast():
                    terms, made = run.model(images, step, state.samples_seen, transformation, draws)
                    loss = sum(terms.values())
                steppers["model"].backward(loss / accumulation)
            for adversary in adversaries:
                with passes.synced(adversary.both, last):
                    with run.autocast():
                        real, fake = adversary.both(made.target, made.reconstruction, draws)
                        its_terms = adversary.terms(real, fake)
                    steppers[adversary.name].backward(sum(its_terms.values()) / accumulation)
                terms |= its_terms
            losses = {name: term.detach() for name, term in {**terms, "total": loss}.items()}
            progress.meter.add({f"loss/{name}": term for name, term in losses.items()})
            for bounds in run.bounds.values():
                bounds.note(losses)
            if care is not None:
                care.note(made)
            del made, loss, terms  # or what they hold would stand beside the next pass

        norms = {}
        for name in ("model", *(adversary.name for adversary in adversaries)):
            accepted = run.bounds[name].accept(state.samples_seen) if name in run.bounds else None
            norms[name] = steppers[name].step(lr, accepted)
        for adversary in adversaries:
            if adversary.lecam is not None:
                adversary.lecam.step()
        if state.ema is not None:
            state.ema.update(step, recipe.ema.decay_by_images(state.samples_seen, recipe.run.global_batch))
        if care is not None:
            care.after_step(step)
        progress.after_step(batch.samples_seen, losses, norms, lr)
    progress.finish(run.folder)


def _summary(run: TokenizerRun) -> str:
    recipe, plan, world = run.recipe, run.plan, run.world
    trained = sum(p.numel() for p in run.tokenizer.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in run.tokenizer.parameters() if not p.requires_grad)
    shares = passes.in_words(world, recipe.run.accumulation, plan.micro_batch)
    return (
        f"tokenizer of {trained / 1e6:.2f} M parameters (+ {frozen / 1e6:.2f} M frozen), {len(run.records)} images, "
        f"{plan.steps} steps of {recipe.run.global_batch}{shares}, autocast {recipe.run.precision}, on {world.device}; "
        f"validated on {run.held_out.count} {run.held_out_name} images"
    )
