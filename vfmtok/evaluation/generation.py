"""How good a generator's images are: N samples are made, checked and measured (sample_metrics.py).

Sample n of a seed is one image: its label and its random numbers are functions of (seed, n), and batches begin at
multiples of the batch size whatever the number of processes. So any number of them, and a run that was cut off and
started again, give the same images; below float32 that holds for one batch size, which then is part of the job. Before
anything is computed the samples are checked. Finished samples are kept and only measured again where the Inception
network or the reference is another one.

Shapes: N samples, B batch, E side of the images.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from vfmtok import distributed
from vfmtok.code import check_fits
from vfmtok.errors import SharedError
from vfmtok.evaluation import jobs
from vfmtok.evaluation.image_sources import NpzImages
from vfmtok.evaluation.results import Measured, as_tree, not_finite
from vfmtok.evaluation.sample_metrics import Subject, measure_samples
from vfmtok.evaluation.samples import Samples, draw_grid, warnings_about, write_checked_samples
from vfmtok.files import read_json
from vfmtok.generators.contract import Generator
from vfmtok.generators.drawing import generate
from vfmtok.layers.precision import full_float32
from vfmtok.tokenizers.contract import Tokenizer, to_pixels
from vfmtok.weights.hashing import model_hash, tokenizer_hash

if TYPE_CHECKING:  # they need torch-fidelity, which sampling alone does not
    from vfmtok.evaluation.inception import Inception
    from vfmtok.evaluation.reference import ReferenceSet

MEASURING = ("Inception", "reference")  # fields of the job that do not change the samples


def evaluate_generator(
    generator: Generator,
    tokenizer: Tokenizer,
    samples: Samples,
    folder: Path,
    world: distributed.World,
    *,
    inception: Inception | None = None,
    references: ReferenceSet | None = None,
    batch: int = 32,
    compile: bool = False,
    class_names: list[str] | None = None,
) -> dict[str, Any]:
    """Sample, check, measure; leave samples.npz, grid.png and results.json in ``folder``. Every process must call it.

    Args:
        generator, tokenizer: on this process's device; the generator in the dtype it is to sample in.
        inception: None samples and checks only.
        references: None leaves out all that needs one.
        batch: B, of every process.

    Returns:
        the content of results.json.

    Raises:
        VFMTokError: the same on all processes.
    """
    check_fits(generator.code, tokenizer.code, "the tokenizer")
    job = _job(generator, tokenizer, samples, inception, references)
    if samples.precision != "none":  # then these change most images, by rounding (generators/autoregressive.py)
        job |= {"batch": batch, "compile": compile}
    results = jobs.begin_together(folder, job, world, may_change=MEASURING, unsaid=samples.unsaid)
    if results is not None:
        return results
    checked = _made_before(folder, samples, world)
    if checked is None:
        checked = _make(generator, tokenizer, samples, folder, world, batch, compile, class_names)
    found = Measured(notes=["gFID, sFID, IS, Pr, Rc and KID are left out: no Inception network (--no-fid)"])
    if inception is not None:
        subject = Subject(NpzImages(folder / "samples.npz"), samples.guidance, samples.protocol)
        found = measure_samples(subject, inception, references, batch, world)
    with distributed.together():
        if world.is_main:
            results = {
                "job": job,
                "numbers": as_tree(found.numbers),
                "warnings": warnings_about(checked) + found.warnings + not_finite(found.numbers),
                "notes": found.notes,
                "samples": checked,
            }
            jobs.finish(folder, results)
    return distributed.gather(results)[0]


def _job(
    generator: Generator,
    tokenizer: Tokenizer,
    samples: Samples,
    inception: Inception | None,
    references: ReferenceSet | None,
) -> dict[str, Any]:
    # "GPT" whatever the family is: that is what unfinished jobs of version 0.1 have.
    models = {"GPT": model_hash(generator), "tokenizer": tokenizer_hash(tokenizer)}
    if any(found != models for found in distributed.gather(models)):
        raise SharedError("the processes built different models: set encoder.weights, random weights differ")
    return {
        **models,
        **samples.job,
        "Inception": inception.protocol() if inception is not None else None,
        "reference": references.reference.identity if references is not None else None,
    }


# --------------------------------------------------------------------------------------
# Sampling
# --------------------------------------------------------------------------------------


def _made_before(folder: Path, samples: Samples, world: distributed.World) -> dict[str, Any] | None:
    """What was counted of finished samples that lie here, the same in every process."""
    checked = None
    with distributed.together():
        if world.is_main and (folder / "samples.npz").is_file():
            checked = (read_json(folder / "results.json") or {}).get("samples")
            if len(NpzImages(folder / "samples.npz")) != samples.count:
                checked = None
    return distributed.gather(checked)[0]


def _make(
    generator: Generator,
    tokenizer: Tokenizer,
    samples: Samples,
    folder: Path,
    world: distributed.World,
    batch: int,
    compile: bool,
    class_names: list[str] | None,
) -> dict[str, Any] | None:
    """samples.npz and grid.png, and (in the first process) what was counted. Every process must call it."""
    store = jobs.Blocks(folder, samples.count)
    share = store.share_to_do(batch, world)
    with distributed.together():
        _sample_blocks(generator, tokenizer, samples, share, store, world, compile)
    checked = None
    with distributed.together():
        if world.is_main:
            labels, num_classes = samples.labels(generator.num_classes), generator.num_classes
            checked = write_checked_samples(store, samples, labels, num_classes, folder / "samples.npz")
            draw_grid(folder, samples, labels, class_names)
    return checked


def _sample_blocks(
    generator: Generator,
    tokenizer: Tokenizer,
    samples: Samples,
    blocks: list[np.ndarray],
    store: jobs.Blocks,
    world: distributed.World,
    compile: bool,
) -> None:
    """Compute this process's share of the blocks. Raises VFMTokError."""
    labels = samples.labels(generator.num_classes)
    with tqdm(total=sum(map(len, blocks)), unit="image", disable=not world.is_main) as bar:
        for rows in blocks:
            with full_float32(world.device.type):
                code = generate(
                    generator,
                    torch.from_numpy(labels[rows]),
                    seed=samples.seed,
                    sample_indices=torch.from_numpy(rows),
                    compile=compile,
                    **asdict(samples.sampling),
                )  # ids (B,K) or latents (B,C,h,w)
                pixels = to_pixels(tokenizer.decode(code), samples.size, samples.uint8_offset)  # (B,E,E,3)
            arrays = {"images": pixels.cpu().numpy(), "labels": labels[rows]}
            store.write(rows, arrays)
            bar.update(len(rows))
