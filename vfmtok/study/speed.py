"""About how long a study takes on this machine: every training's command is run for a few steps, whatever the seed.

So a recipe that can't be trained here, for want of weights or memory, is found as well before the first training. What
is not a training is estimated from them: encoding takes a sixth of a training step, sampling an image of ids about one.
"""

import argparse
import dataclasses
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vfmtok.code import Code, Latents, code_to_dict
from vfmtok.config import dump_config
from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCacheWriter
from vfmtok.data.latent_cache import write_statistics
from vfmtok.data.views import count_views
from vfmtok.errors import VFMTokError
from vfmtok.files import read_json, replace_file, write_json
from vfmtok.generators import build_generator
from vfmtok.pictures.curves import read_log
from vfmtok.study.config import CHECKOUT
from vfmtok.study.images import CLASSES
from vfmtok.study.rows import Parsers, Row
from vfmtok.study.running import Runner, last_line, run_process
from vfmtok.study.steps import Data, Plan, Step
from vfmtok.tokenizers import build_tokenizer
from vfmtok.training.recipe import Plan as TrainingPlan
from vfmtok.weights.checkpoint import CheckpointFolder
from vfmtok.weights.name_maps import own_tensors
from vfmtok.weights.saved import Checkpoint

STEPS = 6  # of a measured training; what the last two take is what counts
MADE_UP = 64  # entries of the cache of random codes on which a generator is measured


@dataclasses.dataclass(frozen=True)
class Speed:
    """Of a training on this machine."""

    samples_per_second: float
    start: float  # seconds before its first step


def measure(step: Step, runner: Runner) -> Speed:
    """From the study's folder, if it was measured before; else by running it for a few steps.

    Raises VFMTokError: it can't be run (names the rows, and says why).
    """
    file = runner.plan.folder / "speed" / f"{socket.gethostname()}-{runner.processes}-{step.pace}.json"
    known = read_json(file)
    if known is None:
        runner.say(f"measuring {STEPS} steps: {step.kind} of {step.for_people()}")
        speed = _run(step, runner)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, dataclasses.asdict(speed))
        return speed
    return Speed(**known)


def measured_by(runner: Runner) -> Callable[[Step], Speed]:
    """``measure``, each pace once."""
    known: dict[str, Speed] = {}

    def speed(step: Step) -> Speed:
        if step.pace not in known:
            known[step.pace] = measure(step, runner)
        return known[step.pace]

    return speed


def _run(step: Step, runner: Runner) -> Speed:
    try:
        folder = Path(tempfile.mkdtemp(prefix="measured-", dir=runner.plan.folder))
    except OSError as error:
        raise VFMTokError(f"cannot write {runner.plan.folder}: {error.strerror}") from None
    try:
        recipe = _short(step, folder, runner.plan)
        replace_file(folder / "recipe.yaml", lambda file: file.write(dump_config(recipe).encode()))
        command = [*runner.launcher(step), str(CHECKOUT / step.script), "--recipe", str(folder / "recipe.yaml")]
        begun = time.monotonic()
        with open(folder / "log.txt", "wb") as log:
            code = run_process(command, log)
        seconds = time.monotonic() - begun
        if code:
            rows = step.for_people()
            raise VFMTokError(f"the {step.kind} of {rows} can't be trained here: {last_line(folder / 'log.txt')}")
        rate = read_log(folder / "run")["images_per_second"][1][-1]
        return Speed(rate, max(0.0, seconds - STEPS * recipe.run.global_batch / rate))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short(step: Step, folder: Path, plan: Plan):
    """The recipe for a few steps, with the discriminators at work if they ever are."""
    recipe = step.recipe
    run = dataclasses.replace(
        recipe.run, results_dir=str(folder / "run"), log_every=2, save_every=10**9, validate_every=10**9,
        validation_images=recipe.run.global_batch, tensorboard=False, wandb=None,
    )  # fmt: skip
    changes = {"run": run, "optimizer": dataclasses.replace(recipe.optimizer, steps=STEPS, warmup_steps=1)}
    if hasattr(recipe, "codebook"):  # most steps have it
        changes["codebook"] = dataclasses.replace(recipe.codebook, continuous_steps=0, kmeans=False)
    recipe = dataclasses.replace(recipe, **changes)
    if hasattr(recipe, "adversarial"):
        for name in ("adversarial", "second_adversarial"):
            section = getattr(recipe, name)
            if section is not None and section.learns_from < steps_of(step, plan.data):
                section = dataclasses.replace(section, start=0, update_start=None)
                recipe = dataclasses.replace(recipe, **{name: section})
        return recipe
    row = next(row for row in plan.rows if row.name == step.needed_by[0][0])
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **_stand_ins(row, folder, plan)))


def _stand_ins(row: Row, folder: Path, plan: Plan) -> dict[str, Any]:
    """Fields of a generator's section ``data`` for what is not there yet: codes, or the tokenizer, untrained."""
    if not row.learns_from_images:
        _write_made_up_codes(folder / "train", row.code, plan.data.num_classes)
        return {"code_path": str(folder / "train"), "val_code_path": None, "vq_ckpt": None, "vq_config": None}
    if row.recipe is None:  # its weights were given
        return {}
    tensors = own_tensors(build_tokenizer(row.tokenizer))
    untrained = Checkpoint(0, {"model": tensors}, {}, dump_config(row.recipe))
    CheckpointFolder(folder / "tokenizer" / "checkpoints").save(untrained)
    return {"vq_ckpt": str(folder / "tokenizer")}


def _write_made_up_codes(path: Path, code: Code, num_classes: int) -> None:
    random = np.random.default_rng(0)
    if isinstance(code, Latents):
        facts = {"posterior": None, "latent_dtype": "float32"}
        codes = random.normal(size=(MADE_UP, 1, 1, *code.shape))
    else:
        facts = {"num_tokens": code.num_tokens, "codebook_size": code.largest_codebook}
        sizes = [segment.size for segment in code.segments for _ in range(segment.count)]
        codes = random.integers(0, sizes, (MADE_UP, 1, code.num_tokens))
    code_cache.begin(
        path,
        {
            "tokenizer_hash": "0" * 64, "dataset": "made up", "dataset_fingerprint": "made up", "num_samples": MADE_UP,
            "classes": [str(label) for label in range(num_classes)], "views": ["made up"], "seed": None,
            "image_size": 0, "code": code_to_dict(code), **facts, "precision": None,
        },
    )  # fmt: skip
    writer = CodeCacheWriter(path)
    writer.write(0, codes, np.arange(MADE_UP) % num_classes, np.zeros(MADE_UP, bool))
    if isinstance(code, Latents):
        writer.finish(statistics=write_statistics(path, writer.written_rows(), "position"))
    else:
        writer.finish()
    writer.close()


# --------------------------------------------------------------------------------------
# Estimates
# --------------------------------------------------------------------------------------


def steps_of(step: Step, data: Data) -> int:
    """Of a training, on the study's data."""
    return TrainingPlan.of(step.recipe.optimizer, step.recipe.run, data.train, 1).steps


def estimate(step: Step, speeds: Callable[[Step], Speed], data: Data, parsers: Parsers) -> float | None:
    """Seconds from the beginning of the step to its end; None where nothing was measured that tells."""
    if step.is_training:
        speed = speeds(step)
        return speed.start + steps_of(step, data) * step.recipe.run.global_batch / speed.samples_per_second
    before = {parent.kind: parent for parent in _ancestors(step)}
    if "tokenizer" not in before:
        return None
    tokenizer = speeds(before["tokenizer"])
    name = step.kind.replace("held-out codes", "held_out_codes")
    flags = parsers[name]().parse_args(step.flags) if name in parsers else argparse.Namespace()
    if step.kind in ENCODED:
        return tokenizer.start + ENCODED[step.kind](flags, data) / (6 * tokenizer.samples_per_second)
    if "generator" not in before:
        return tokenizer.start
    generator = speeds(before["generator"])
    images = SAMPLED[step.kind](flags, data) * _steps_of_an_image(before["generator"].recipe.generator, flags)
    return generator.start + images / generator.samples_per_second


def _steps_of_an_image(config: Any, flags: argparse.Namespace) -> float:
    """How many samples are trained in the time in which an image is sampled: one, of ids. Latents take a pass through
    the model, two with guidance, in each of their steps; a training step is about three."""
    with torch.device("meta"):
        settings = build_generator(config).sampling()
    steps = getattr(flags, "steps", None) or getattr(settings, "steps", None)
    return 1.0 if steps is None else steps * 2 / 3


# Kind of a step -> images that its command encodes or samples, by the command's flags and the study's data.
ENCODED: dict[str, Callable[[argparse.Namespace, Data], int]] = {
    "codes": lambda flags, data: data.train * count_views(flags.views, flags.num_random_views),
    "held-out codes": lambda flags, data: data.val * count_views(flags.views, flags.num_random_views),
    "reconstruction": lambda flags, data: 2 * data.val + (data.train if flags.linear_probe else 0),
}
SAMPLED: dict[str, Callable[[argparse.Namespace, Data], int]] = {
    "generation": lambda flags, data: flags.num_fid_samples * len((flags.cfg_scale or "1").split(",")),
    "agreement": lambda flags, data: flags.per_class * data.num_classes * len(flags.cfg_scales),
    "images": lambda flags, data: 2 * CLASSES,
}


def _ancestors(step: Step) -> list[Step]:
    return [*step.parents, *(found for parent in step.parents for found in _ancestors(parent))]


def as_time(seconds: float | None) -> str:
    """ "40 s", "12 min", "3.4 h", "2.1 days"."""
    if seconds is None:
        return "?"
    for unit, length, least in (("days", 86400, 2 * 86400), ("h", 3600, 2 * 3600), ("min", 60, 120)):
        if seconds >= least:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
