"""Training a tokenizer: the one visible loop behind ``vq_train.py``.

Run the same command again and it goes on where the last checkpoint was taken, to the same weights: every random number
is a function of (seed, step, rank), every sample of (seed, samples seen). One process and many take the same way.
"""

import contextlib
from pathlib import Path

from vfmtok import distributed
from vfmtok.data.transforms import to_unit_range
from vfmtok.training import passes, run_folder
from vfmtok.training.health import Alarms, Meter, Pace
from vfmtok.training.interruption import StopRequest
from vfmtok.training.objective import discriminator_terms
from vfmtok.training.optimizer import learning_rate
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.training.run_log import RunLog
from vfmtok.training.tokenizer_run import TokenizerRun
from vfmtok.weights.checkpoint import seed_step


def train_tokenizer(
    recipe: TokenizerRecipe,
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
            run = TokenizerRun(recipe, world, start_from, finetune_from)
            run.held_out.read()  # bad images there shall not end the run at its first validation
            if world.is_main:
                run_folder.prepare(run.folder, run.state.recipe)
        log = run_folder.open_log(run.folder, run.state, run.plan.steps, world)
        with contextlib.closing(log), contextlib.closing(run.loader()) as loader, StopRequest() as stop:
            for line in [_summary(run), *run.notes]:
                log.say(line)
            _train(run, log, loader, stop)


def _train(run: TokenizerRun, log: RunLog, loader, stop: StopRequest) -> None:
    recipe, plan, state, world = run.recipe, run.plan, run.state, run.world
    tokenizer_stepper, judge_stepper = state.steppers["model"], state.steppers.get("discriminator")
    if run_folder.owes_validation(state):
        run.validate(log)
        run_folder.save(state, run.checkpoints, log, world, must=False)
    meter, alarms, pace = Meter(), Alarms(), Pace(state.step)

    while state.step < plan.steps:
        step = state.step
        seed_step(recipe.run.seed, step, world.rank)
        if recipe.codebook.kmeans and step == recipe.codebook.continuous_steps:
            run.start_codebook()
        run.care.before_step(step)
        judged = run.judge is not None and step >= recipe.adversarial.start
        judge_learns = run.judge is not None and step >= recipe.adversarial.learns_from
        lr = learning_rate(recipe.optimizer, step, plan.warmup_steps, plan.steps)
        batch = next(loader)

        ids, latents = [], []
        for last, (part,) in passes.micro_batches(plan.micro_batch, batch.images):
            images = to_unit_range(part.to(world.device, non_blocking=True))  # (b,3,S,S)
            with passes.synced(run.model, last):
                with run.autocast():
                    out = run.model(images)
                    terms = run.objective(images, out, judged)
                    loss = sum(terms.values())
                tokenizer_stepper.backward(loss / recipe.run.accumulation)
            if judge_learns:
                with passes.synced(run.judge, last):
                    with run.autocast():
                        real, fake = run.judge(images, out.reconstruction.detach())
                        judge_terms = discriminator_terms(recipe.adversarial, real, fake, run.lecam)
                    judge_stepper.backward(sum(judge_terms.values()) / recipe.run.accumulation)
                terms |= judge_terms
            terms = {name: term.detach() for name, term in {**terms, "total": loss}.items()}
            meter.add({f"loss/{name}": term for name, term in terms.items()})
            ids.append(out.ids)
            latents.append(out.latents.detach())
            del out, loss  # or what they hold would stand beside the next pass

        norms = {"grad_norm/model": tokenizer_stepper.step(lr)}
        if judge_learns:
            norms["grad_norm/discriminator"] = judge_stepper.step(lr)
            if run.lecam is not None:
                run.lecam.step()
        if state.ema is not None:
            state.ema.update(step)
        run.care.after_step(step, ids, latents)
        run.skipped.add(sum(norms.values()))
        meter.add(norms)
        state.step, state.samples_seen = step + 1, batch.samples_seen
        log.advance()
        run.skipped.check(state.step, terms)

        stopping = stop()
        at_end = state.step == plan.steps
        if state.step % recipe.run.log_every == 0 or at_end or stopping:
            _report(run, log, loader, meter, alarms, lr, pace)
        with pace.paused():
            if at_end or (state.step % recipe.run.validate_every == 0 and not stopping):  # who is to stop saves first
                run.validate(log)
            if state.step % recipe.run.save_every == 0 or at_end or stopping:
                run_folder.save(state, run.checkpoints, log, world, must=at_end or stopping)
        if stopping and not at_end:
            log.say(f"stopped after step {state.step} of {plan.steps}; the same command continues")
            return
    log.say(f"finished {plan.steps} steps; the run is in {run.folder}")


def _report(run: TokenizerRun, log: RunLog, loader, meter: Meter, alarms: Alarms, lr: float, pace: Pace) -> None:
    """Numbers since the last report. Every process takes part; the first one writes."""
    values = meter.read()
    usage = run.care.usage()
    if usage is not None:
        values |= {"codebook/usage": usage.used, "codebook/perplexity": usage.perplexity}
    used = f" codes {usage.used:.0%}" if usage is not None else ""
    run_folder.log_numbers(
        log,
        run.state,
        values,
        shown=f"loss {values['loss/total']:.4f} pixel {values['loss/pixel']:.4f}{used}",
        lr=lr,
        steps_per_second=pace.read(run.state.step),
        source=loader,
        num_samples=len(run.records),
        alarms=alarms,
        world=run.world,
    )


def _summary(run: TokenizerRun) -> str:
    recipe, plan, world = run.recipe, run.plan, run.world
    trained = sum(p.numel() for p in run.tokenizer.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in run.tokenizer.parameters() if not p.requires_grad)
    shares = f"{world.size} process(es) x {recipe.run.accumulation} pass(es) x {plan.micro_batch}"
    return (
        f"tokenizer of {trained / 1e6:.2f} M parameters (+ {frozen / 1e6:.2f} M frozen), {len(run.records)} images, "
        f"{plan.steps} steps of {recipe.run.global_batch} = {shares}, {recipe.run.precision} on {world.device}; "
        f"validated on {run.held_out.count} {run.held_out_name} images"
    )
