"""`vfmtok info RECIPE --on h100x8`: what its training takes there. The arithmetic is in ``vfmtok/forecast``."""

import argparse
import dataclasses
import math
from typing import Any

from vfmtok.commands.columns import aligned
from vfmtok.config import config_from_dict, config_to_dict
from vfmtok.errors import ConfigError
from vfmtok.evaluation.model_size import without_weights
from vfmtok.forecast import prediction
from vfmtok.forecast.machines import GIB, GIGA, GPUS, TERA, Machines, read_machines
from vfmtok.forecast.prediction import IMAGENET, UTILISATION, Prediction, in_precision, predict
from vfmtok.forecast.training_pass import training_pass
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.trees import override_tree

RECIPES = {"tokenizer": TokenizerRecipe, "generator": GeneratorRecipe}
ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what a training by a recipe takes")
    text = f"on these GPUs, as h100x8; {ALL} or {ALL}x8 compares those of the table: {', '.join(GPUS)}"
    group.add_argument("--on", metavar="GPUxN", help=text)
    group.add_argument("--images", type=int, default=IMAGENET, help="of an epoch; by default ImageNet's")
    text = "the share of the maker's rate that matrix products reach, assumed to be %(default)s"
    group.add_argument("--utilisation", type=float, default=UTILISATION, help=text)
    group.add_argument("--price", type=float, help="dollars for a GPU and hour, instead of the table's assumption")


def changes_recipe(section: str, setting: str) -> bool:
    """Whether a --set is about another section of the recipe than the model's."""
    others = {field.name for field in dataclasses.fields(RECIPES[section])} - {section}
    return setting.partition("=")[0].partition(".")[0] in others


def forecasts(
    section: str, config: Any, tree: dict[str, Any], settings: list[str], args: argparse.Namespace
) -> list[Prediction]:
    """By ``args``, of a recipe whose other sections are in ``tree``, changed by ``settings``.

    Raises VFMTokError.
    """
    if not 0 < args.utilisation <= 1:
        raise ConfigError(f"--utilisation must be in (0,1], got {args.utilisation}")
    if args.images < 1 or (args.price is not None and args.price < 0):
        raise ConfigError("--images must be positive, --price not negative")
    name, x, count = args.on.lower().partition("x")
    wanted = [f"{gpu}{x}{count}" for gpu in GPUS] if name == ALL else [args.on]
    machines = [_priced(read_machines(text), args.price) for text in wanted]
    kind, own = RECIPES[section], config_to_dict(without_weights(config))
    recipe = in_precision(config_from_dict(override_tree({**tree, section: own}, settings), kind, args.config))
    found = training_pass(recipe)
    return [predict(recipe, machine, args.images, args.utilisation, found) for machine in machines]


def _priced(machines: Machines, price: float | None) -> Machines:
    if price is None:
        return machines
    return dataclasses.replace(machines, gpu=dataclasses.replace(machines.gpu, price=price))


# --------------------------------------------------------------------------------------
# For programs
# --------------------------------------------------------------------------------------


def facts(found: Prediction) -> dict[str, Any]:
    """What ``--json`` prints: seconds, bytes, dollars."""
    return {
        "gpu": found.machines.gpu.name,
        "gpus": found.machines.count,
        "batch_per_gpu": found.setting.batch,
        "steps": found.plan.steps,
        "flops_per_step": found.flops,
        "step_seconds": found.step,
        "passes_seconds": found.passes,
        "optimizer_seconds": found.optimizer,
        "communication_seconds": found.talk,
        "days": found.days,
        "days_compiled": found.days_compiled,
        "days_as_published": found.days_as_published,
        "cost": found.cost,
        "of_peak": found.of_peak,
        "utilisation": found.utilisation,
        "state_bytes": found.memory.states,
        "passing_bytes": found.memory.passing,
        "host_bytes": found.memory.host,
        "memory_bytes": found.memory.total,
        "fits": found.fits,
        "advice": [text for text, _ in found.advice],
    }


# --------------------------------------------------------------------------------------
# For people
# --------------------------------------------------------------------------------------


def report(found: list[Prediction]) -> list[str]:
    return _comparison(found) if len(found) > 1 else _one(found[0])


def _one(found: Prediction) -> list[str]:
    machines, setting, gpu = found.machines, found.setting, found.machines.gpu
    run, published = found.recipe.run, found.published
    ways = [
        run.precision if run.precision != "none" else "float32",
        "activations recomputed" if setting.recompute else "activations kept",
        "sharded (FSDP)" if setting.fsdp else "a copy on each GPU (DDP)" if machines.count > 1 else "one GPU",
        *(["compiled"] if run.compile else []),
    ]
    rows = [
        ("each GPU", f"{gpu.memory / GIB:.1f} GiB, {_rates(found)}, {gpu.bandwidth / GIGA:,.0f} GB/s"),
        ("a step", f"{run.global_batch} images = {machines.count} x {run.accumulation} x {setting.batch}"),
        ("", ", ".join(ways)),
        ("", f"{found.flops / TERA:,.1f} TFLOPs, counted forward and backward"),
        ("", f"{found.step:.3f} s: passes {found.passes:.3f}, optimizer {found.optimizer:.3f}; {_talk(found)}"),
        ("the run", f"{found.plan.steps:,} steps: {_days(found.days)}, ${found.cost:,.0f} at ${gpu.price:.2f} an hour"),
        *(
            []
            if run.compile
            else [("compiled", f"{found.step_compiled:.3f} s, {_days(found.days_compiled)} (run.compile)")]
        ),
        ("assumed", f"products at {found.utilisation:.0%} of their rate, all else at {prediction.STREAMED:.0%} of the"),
        ("", "memory's bandwidth, images never waited for; the price is no quotation (--price)"),
        ("of the peak", f"{found.of_peak:.0%} of what the GPUs do in bf16 (MFU)"),
        ("beside it", f"{published.name} took {published.hours:g} hours on {published.machines}, published:"),
        ("", f"{published.of_peak:.0%} of the peak; at that share this run takes {_days(found.days_as_published)}"),
    ]
    lines = [f"Training on {machines}:", *("  " + line for line in aligned([list(row) for row in rows], 2))]
    return [*lines, "", *_memory(found)]


def _memory(found: Prediction) -> list[str]:
    memory, has = found.memory, found.machines.gpu.memory
    rows = [[name, f"{size / GIB:.2f}"] for name, size in [*memory.states.items(), *memory.passing.items()] if size]
    rows.append(["all, with CUDA's own and 5% that the allocator loses", f"{memory.total / GIB:.2f}"])
    which = "the GPU that needs most" if found.setting.processes > 1 else "the GPU"
    lines = [f"Memory of {which}, GiB:", *("  " + line for line in aligned(rows))]
    if found.fits:
        lines.append(f"  It fits: {memory.total / has:.0%} of {has / GIB:.1f} GiB.")
    elif not found.advice:
        lines.append(f"  It does not fit in {has / GIB:.1f} GiB, and nothing in the recipe would make it.")
    for text, total in found.advice:
        enough = "It would with" if total <= has else "It would not even with"
        lines.append(f"  It does not fit in {has / GIB:.1f} GiB. {enough} {text} ({total / GIB:.1f} GiB).")
    hosts = ", ".join(f"{size / GIB:.1f} {when}" for when, size in memory.host.items())
    return [*lines, f"Memory of a process on its host, GiB, without loaders: {hosts}"]


def _comparison(found: list[Prediction]) -> list[str]:
    first = found[0]
    rows = [["GPUs", "GiB", "bf16", "fp32", "GB/s", "$/h", "needs GiB", "fits", "s/step", "days", "as published", "$"]]
    for each in found:
        gpu, numbers = each.machines.gpu, (f"{each.memory.total / GIB:.1f}", "yes" if each.fits else "no")
        rates = (f"{gpu.bf16 / TERA:,.0f}", f"{gpu.fp32 / TERA:,.0f}", f"{gpu.bandwidth / GIGA:,.0f}")
        run = (f"{each.step:.3f}", f"{each.days:.2f}", f"{each.days_as_published:.2f}", f"{each.cost:,.0f}")
        rows.append([str(each.machines), f"{gpu.memory / GIB:.1f}", *rates, f"{gpu.price:.2f}", *numbers, *run])
    return [
        f"Training, {first.plan.steps:,} steps of {first.recipe.run.global_batch} images (rates in TFLOP/s, dense):",
        *("  " + line for line in aligned(rows)),
        f"  Assumed: products at {first.utilisation:.0%} of their rate, all else at {prediction.STREAMED:.0%} of the "
        "memory's bandwidth; the prices.",
        f"  As published: at the share of the peak that {first.published.name} reached, {first.published.of_peak:.0%}.",
    ]


def _rates(found: Prediction) -> str:
    gpu, full = found.machines.gpu, "tf32" if found.recipe.run.tf32 else "fp32"
    return f"{gpu.bf16 / TERA:,.0f} TFLOP/s in bf16 and {getattr(gpu, full) / TERA:,.0f} in {full}"


def _talk(found: Prediction) -> str:
    if found.machines.count == 1:
        return "nothing to send"
    hidden = "hidden behind the passes" if found.talk <= found.passes else "longer than the passes: it is what counts"
    return f"sending {found.talk:.3f}, {hidden}"


def _days(days: float) -> str:
    if not math.isfinite(days):
        return "forever"
    if days >= 2:
        return f"{days:,.1f} days"
    return f"{24 * days:,.1f} hours" if days >= 1 / 12 else f"{1440 * days:,.1f} minutes"
