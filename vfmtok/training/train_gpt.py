"""Training a generator: the one visible loop behind ``train_c2i.py``.

Run the same command again and it goes on where the last checkpoint was taken, to the same weights: every random number
is a function of (seed, step, rank), every sample of (seed, samples seen). One process and many take the same way.
"""

import contextlib
import time
from pathlib import Path

from vfmtok import distributed
from vfmtok.config import config_to_dict
from vfmtok.training import passes, run_folder
from vfmtok.training.checkpoint import seed_step
from vfmtok.training.gpt_recipe import GPTRecipe
from vfmtok.training.gpt_run import GPTRun
from vfmtok.training.health import Alarms, Meter, peak_memory
from vfmtok.training.interruption import StopRequest
from vfmtok.training.optimizer import learning_rate
from vfmtok.training.run_log import RunLog
from vfmtok.training.token_source import CachedTokens, EncodedTokens


def train_gpt(
    recipe: GPTRecipe,
    world: distributed.World,
    start_from: Path | None = None,
    finetune_from: Path | None = None,
) -> None:
    """Train from the last checkpoint in ``recipe.run.results_dir``, or from the beginning, to the end.

    Args:
        world: this process among the others.
        start_from: another run's checkpoint to continue from, if this run has none of its own.
        finetune_from: weights to begin with, ours or released.

    Raises:
        VFMTokError: whatever is wrong with the recipe, the data or the weights; or the run diverged.
    """
    with run_folder.locked(Path(recipe.run.results_dir).expanduser(), world):
        with distributed.together():
            run = GPTRun(recipe, world, start_from, finetune_from)
            if world.is_main:
                run_folder.prepare(run.folder, run.state.recipe)
        log = RunLog(
            run.folder,
            recipe.run,
            active=world.is_main,
            step=run.state.step,
            total_steps=run.plan.steps,
            samples_per_step=recipe.run.global_batch,
            recipe=config_to_dict(run.state.recipe),
        )
        with contextlib.closing(log), contextlib.closing(run.tokens()) as tokens, StopRequest() as stop:
            for line in [_summary(run), *run.notes]:
                log.say(line)
            _train(run, log, tokens, stop)


def _train(run: GPTRun, log: RunLog, tokens: CachedTokens | EncodedTokens, stop: StopRequest) -> None:
    recipe, plan, state, world = run.recipe, run.plan, run.state, run.world
    stepper = state.steppers["model"]
    meter, alarms, last_log = Meter(), Alarms(), (state.step, time.perf_counter())

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
            last_log = _report(run, log, tokens, meter, alarms, lr, last_log)
        if state.step % recipe.run.validate_every == 0 or at_end:
            run.validate(log)
        every = recipe.pictures.every
        if run.data.tokenizer is not None and every and (state.step % every == 0 or at_end):
            run.draw(log)
        if state.step % recipe.run.save_every == 0 or at_end or stopping:
            run_folder.save(state, run.checkpoints, log, world, must=at_end or stopping)
        if stopping and not at_end:
            log.say(f"stopped after step {state.step} of {plan.steps}; the same command continues")
            return
    log.say(f"finished {plan.steps} steps; the run is in {run.folder}")


def _report(run: GPTRun, log: RunLog, tokens, meter: Meter, alarms: Alarms, lr: float, last_log: tuple[int, float]):
    """Numbers since the last report. Every process takes part; the first one writes."""
    step, now = run.state.step, time.perf_counter()
    images_per_second = (step - last_log[0]) * run.recipe.run.global_batch / (now - last_log[1])
    values = meter.read() | {
        "lr": lr,
        "epoch": run.state.samples_seen / len(run.data),
        "images_per_second": images_per_second,
        "tokens_per_second": images_per_second * run.recipe.gpt.num_tokens,
        "data_wait": tokens.wait_share,
        "memory_gib": peak_memory(run.world.device) / 2**30,
        "skipped_steps": run.skipped.total,
        "bad_records": len(tokens.bad_records),
    }
    tokens.reset_timing()
    log.scalars(step, values, shown=f"loss {values['loss/token']:.4f}")
    for line in alarms.check(values):
        log.alarm(step, line)
    return step, now


def _summary(run: GPTRun) -> str:
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
