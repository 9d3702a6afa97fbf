"""Training a generator: the one visible loop behind ``train_c2i.py``.

Run the same command again and it goes on where the last checkpoint was taken, to the same weights: every random number
is a function of (seed, step, rank), every sample of (seed, samples seen). One process and many take the same way.
"""

import contextlib
from pathlib import Path

from vfmtok import distributed
from vfmtok.training import passes, run_folder
from vfmtok.training.code_source import CachedTokens, EncodedTokens
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.generator_run import GeneratorRun
from vfmtok.training.health import Alarms, Meter, Pace
from vfmtok.training.interruption import StopRequest
from vfmtok.training.optimizer import learning_rate
from vfmtok.training.run_log import RunLog
from vfmtok.weights.checkpoint import seed_step


def train_gpt(
    recipe: GeneratorRecipe,
    world: distributed.World,
    start_from: Path | None = None,
    finetune_from: Path | None = None,
    size: str | None = None,
) -> None:
    """Train from the last checkpoint in ``recipe.run.results_dir``, or from the beginning, to the end.

    Args:
        world: this process among the others.
        start_from: another run's checkpoint to continue from, if this run has none of its own.
        finetune_from: weights to begin with, ours or released.
        size: the name of the generator's size ("GPT-B"): which one to take of a published repository.

    Raises:
        VFMTokError: whatever is wrong with the recipe, the data or the weights; or the run diverged.
    """
    with run_folder.locked(Path(recipe.run.results_dir).expanduser(), world):
        with distributed.together():
            run = GeneratorRun(recipe, world, start_from, finetune_from, size)
            if world.is_main:
                run_folder.prepare(run.folder, run.state.recipe)
        log = run_folder.open_log(run.folder, run.state, run.plan.steps, world)
        with contextlib.closing(log), contextlib.closing(run.tokens()) as tokens, StopRequest() as stop:
            for line in [_summary(run), *run.notes]:
                log.say(line)
            _train(run, log, tokens, stop)


def _train(run: GeneratorRun, log: RunLog, tokens: CachedTokens | EncodedTokens, stop: StopRequest) -> None:
    recipe, plan, state, world = run.recipe, run.plan, run.state, run.world
    stepper = state.steppers["model"]
    if run_folder.owes_validation(state):
        run.validate(log)
        run_folder.save(state, run.checkpoints, log, world, must=False)
    if run.owes_picture():
        run.draw(log)
    meter, alarms, pace = Meter(), Alarms(), Pace(state.step)

    while state.step < plan.steps:
        step = state.step
        batch = next(tokens)
        seed_step(recipe.run.seed, step, world.rank)
        lr = learning_rate(run.optimizer_config, step, plan.warmup_steps, plan.steps)

        for last, (ids, labels) in passes.micro_batches(plan.micro_batch, batch.ids, batch.labels):
            ids = ids.to(world.device, non_blocking=True)  # (b,K)
            labels = labels.to(world.device, non_blocking=True)  # (b,)
            with passes.synced(run.model, last):
                with run.autocast():
                    loss = run.model(labels, ids[:, :-1], targets=ids).loss
                stepper.backward(loss / recipe.run.accumulation)
            meter.add({"loss/token": loss})

        norm = stepper.step(lr)
        if state.ema is not None:
            state.ema.update(step)
        run.skipped.add(norm)
        meter.add({"grad_norm/model": norm})
        state.step, state.samples_seen = step + 1, batch.samples_seen
        log.advance()
        run.skipped.check(state.step, {"token": loss})

        stopping = stop()
        at_end = state.step == plan.steps
        if state.step % recipe.run.log_every == 0 or at_end or stopping:
            _report(run, log, tokens, meter, alarms, lr, pace)
        with pace.paused():
            if at_end or (state.step % recipe.run.validate_every == 0 and not stopping):  # who is to stop saves first
                run.validate(log)
            if state.step % recipe.run.save_every == 0 or at_end or stopping:
                run_folder.save(state, run.checkpoints, log, world, must=at_end or stopping)
            if run.draws and (at_end or (state.step % recipe.pictures.every == 0 and not stopping)):
                run.draw(log)
        if stopping and not at_end:
            log.say(f"stopped after step {state.step} of {plan.steps}; the same command continues")
            return
    log.say(f"finished {plan.steps} steps; the run is in {run.folder}")


def _report(run: GeneratorRun, log: RunLog, tokens, meter: Meter, alarms: Alarms, lr: float, pace: Pace) -> None:
    """Numbers since the last report. Every process takes part; the first one writes."""
    values, recipe = meter.read(), run.recipe
    rate = pace.read(run.state.step)
    values["tokens_per_second"] = rate * recipe.run.global_batch * recipe.generator.num_tokens
    run_folder.log_numbers(
        log,
        run.state,
        values,
        shown=f"loss {values['loss/token']:.4f}",
        lr=lr,
        steps_per_second=rate,
        source=tokens,
        num_samples=len(run.data),
        alarms=alarms,
        world=run.world,
    )


def _summary(run: GeneratorRun) -> str:
    recipe, plan, world = run.recipe, run.plan, run.world
    source = (
        f"token cache {run.data.cache.path}" if run.data.cache is not None else f"images of {run.data.records.path}"
    )
    shares = f"{world.size} process(es) x {recipe.run.accumulation} pass(es) x {plan.micro_batch}"
    return (
        f"generator of {run.parameters / 1e6:.2f} M parameters, {len(run.data)} samples of the {source}, "
        f"{plan.steps} steps of {recipe.run.global_batch} = {shares}, learning rate {run.optimizer_config.lr:.3g}, "
        f"{recipe.run.precision} on {world.device}; validated on {run.held_out_name} samples"
    )
