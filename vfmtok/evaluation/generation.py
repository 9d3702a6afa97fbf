"""How good a generator's images are: gFID, sFID, IS, precision and recall of N samples, class by class.

Sample n of a seed is one image: its label and its random numbers are functions of (seed, n), and batches begin at
multiples of the batch size whatever the number of processes. So any number of them, and a run that was cut off and
started again, give the same images. Before anything is computed the samples are checked.

Shapes: N samples, B batch, K tokens, E side of the images.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vfmtok import distributed
from vfmtok.data.code_cache import model_hash, tokenizer_hash
from vfmtok.errors import ConfigError, SharedError
from vfmtok.evaluation import parts
from vfmtok.evaluation.feature_bank import FeatureBank
from vfmtok.evaluation.frechet import FeatureStatistics, Gaussian, check_same_tap, frechet_distance
from vfmtok.evaluation.image_sources import NpzImages
from vfmtok.evaluation.inception_score import SPLITS, InceptionScore
from vfmtok.evaluation.precision_recall import NEIGHBOUR, precision_recall
from vfmtok.evaluation.report import Number, as_tree, collected_warnings, describe_reference, not_finite
from vfmtok.evaluation.samples import Samples, draw_grid, write_checked_samples
from vfmtok.generator.generate import generate
from vfmtok.generator.gpt import GPT
from vfmtok.layers.precision import full_float32
from vfmtok.tokenizer.tokenizer import VFMTok

if TYPE_CHECKING:  # they need torch-fidelity, which sampling alone does not
    from vfmtok.evaluation.compared import ReferenceSet
    from vfmtok.evaluation.inception import Inception


def evaluate_generator(
    gpt: GPT,
    tokenizer: VFMTok,
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
        gpt, tokenizer: on this process's device; the GPT in the dtype it is to sample in.
        inception: None samples and checks only.
        references: None leaves out all that needs one.
        batch: B, of every process.

    Returns:
        the content of results.json.

    Raises:
        VFMTokError: the same on all processes.
    """
    check_match(gpt, tokenizer)
    job = _job(gpt, tokenizer, samples, inception, references)
    results = parts.begin_together(folder, job, world)
    if results is not None:
        return results
    store = parts.Parts(folder, samples.count)
    share = store.share_to_do(batch, world)
    with distributed.together():
        _sample_blocks(gpt, tokenizer, samples, share, store, world, compile)
    labels, checked, warnings = samples.labels(gpt.config.num_classes), {}, []
    with distributed.together():
        if world.is_main:
            checked, warnings = write_checked_samples(store, samples, labels, folder / "samples.npz")
    numbers, notes = [], ["gFID, sFID, IS, Pr and Rc are left out: no Inception network (--no-fid)"]
    if inception is not None:
        numbers, more, notes = _measure(folder / "samples.npz", samples, inception, references, batch, world)
        warnings += more
    with distributed.together():
        if world.is_main:
            draw_grid(folder, samples, labels, class_names)
            results = {
                "job": job,
                "numbers": as_tree(numbers),
                "warnings": warnings + not_finite(numbers),
                "notes": notes,
                "samples": checked,
            }
            parts.finish(folder, results)
    return distributed.gather(results)[0]


def check_match(gpt: GPT, tokenizer: VFMTok) -> None:
    """Raise ConfigError unless the GPT's tokens are the tokenizer's."""
    theirs = tokenizer.config.quantizer.codebook_size, tokenizer.config.sampler.num_tokens
    if (gpt.config.vocab_size, gpt.config.num_tokens) != theirs:
        raise ConfigError(
            f"the GPT makes {gpt.config.num_tokens} tokens of {gpt.config.vocab_size} codes, the tokenizer reads "
            f"{theirs[1]} of {theirs[0]}: they do not belong together"
        )


def _job(
    gpt: GPT, tokenizer: VFMTok, samples: Samples, inception: Inception | None, references: ReferenceSet | None
) -> dict[str, Any]:
    models = {"GPT": model_hash(gpt, gpt.config), "tokenizer": tokenizer_hash(tokenizer)}
    if any(found != models for found in distributed.gather(models)):
        raise SharedError("the processes built different models: set encoder.weights, random weights differ")
    return {
        **models,
        **asdict(samples),
        "Inception": inception.protocol() if inception is not None else None,
        "reference": references.reference.sha256 if references is not None else None,
    }


# --------------------------------------------------------------------------------------
# Sampling
# --------------------------------------------------------------------------------------


def _sample_blocks(
    gpt: GPT,
    tokenizer: VFMTok,
    samples: Samples,
    blocks: list[np.ndarray],
    store: parts.Parts,
    world: distributed.World,
    compile: bool,
) -> None:
    """Fill this process's share of the parts. Raises VFMTokError."""
    labels = samples.labels(gpt.config.num_classes)
    with tqdm(total=sum(map(len, blocks)), unit="image", disable=not world.is_main) as bar:
        for rows in blocks:
            with full_float32(world.device.type):
                ids = generate(
                    gpt,
                    torch.from_numpy(labels[rows]),
                    cfg_scale=samples.cfg_scale,
                    cfg_interval=samples.cfg_interval,
                    temperature=samples.temperature,
                    top_k=samples.top_k,
                    top_p=samples.top_p,
                    seed=samples.seed,
                    sample_indices=torch.from_numpy(rows),
                    compile=compile,
                )  # (B,K)
                pixels = tokenizer.decode_to_uint8(ids, samples.size)  # (B,E,E,3)
            arrays = {"images": pixels.cpu().numpy(), "labels": labels[rows], "ids": ids.int().cpu().numpy()}
            store.write(rows, arrays)
            bar.update(len(rows))


# --------------------------------------------------------------------------------------
# The numbers
# --------------------------------------------------------------------------------------


def _measure(
    path: Path,
    samples: Samples,
    inception: Inception,
    references: ReferenceSet | None,
    batch: int,
    world: distributed.World,
) -> tuple[list[Number], list[str], list[str]]:
    """Numbers, warnings and notes (in the first process; none elsewhere). Every process must call it."""
    from vfmtok.evaluation.reference import inception_features

    score = InceptionScore(samples.count) if samples.count >= SPLITS else None
    bank = FeatureBank(samples.count)
    pool, spatial = FeatureStatistics(2048), FeatureStatistics(2023)
    with distributed.together():
        for indices, features in inception_features(inception, NpzImages(path), batch, world.rank, world.size):
            pool.update(features.pool)
            spatial.update(features.spatial)
            bank.update(features.pool, indices)
            if score is not None:
                score.update(features.probabilities, indices)
    with distributed.together():
        gaussians, features = (pool.compute(), spatial.compute()), bank.compute()
        scored = score.compute() if score is not None else None
    numbers, notes, warnings = [], [], []
    with distributed.together():
        if world.is_main:
            with collected_warnings() as warnings:
                numbers, notes = _distances(references, gaussians, samples)
            if scored is not None:
                of = f"{SPLITS} splits in order, std {scored.std:.3f}; {_about(samples)}"
                numbers.append(Number(f"IS ({samples.guidance})", scored.mean, of))
            else:
                notes.append(f"IS is left out: {SPLITS} splits need as many samples")
            shares, more = _precision_recall(references, features, samples, world)
            numbers, notes = numbers + shares, notes + more
    return numbers, warnings, notes


def _distances(
    references: ReferenceSet | None, gaussians: tuple[Gaussian, Gaussian], samples: Samples
) -> tuple[list[Number], list[str]]:
    """gFID and sFID, as far as the reference goes, and what is left out."""
    if references is None:
        return [], ["gFID and sFID are left out: no reference (--ref-batch)"]
    reference, guidance = references.reference, samples.guidance
    protocol = f"{_about(samples)}, against {describe_reference(reference)}; Inception 2015-12-05"
    gfid = frechet_distance(gaussians[0], reference.pool, "gFID")
    numbers = [Number(f"gFID ({guidance})", gfid, f"pool3; {protocol}")]
    if reference.spatial is None:
        return numbers, ["sFID is left out: the reference has no mu_s and sigma_s"]
    check_same_tap(reference.spatial, gaussians[1])
    sfid = frechet_distance(gaussians[1], reference.spatial, "sFID")
    return [*numbers, Number(f"sFID ({guidance})", sfid, f"mixed_6/conv, 7 channels; {protocol}")], []


def _precision_recall(
    references: ReferenceSet | None, features: Tensor, samples: Samples, world: distributed.World
) -> tuple[list[Number], list[str]]:
    """Pr and Rc of features (N,2048), or why they are left out."""
    others = references.features if references is not None else None
    count = 0 if others is None else len(others)
    if min(count, len(features)) <= NEIGHBOUR:
        why = f"the reference holds {count} images and there are {len(features)} samples"
        return [], [f"Pr and Rc are left out: {why}; --ref-batch may also name a dataset or a folder of images"]
    found = precision_recall(features, others, device=world.device)
    of = f"k={NEIGHBOUR} on pool3; {_about(samples)}, against {count:,} reference images"
    return [
        Number(f"Pr ({samples.guidance})", found.precision, of),
        Number(f"Rc ({samples.guidance})", found.recall, of),
    ], []


def _about(samples: Samples) -> str:
    return f"{samples.count:,} samples at {samples.size} px, {samples.guidance}, {samples.classes} classes"
