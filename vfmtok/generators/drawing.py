"""New images of classes: their codes, and pixels through the tokenizer; by one process or all of a run.

Shapes: N images, B batch, S image side.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vfmtok import distributed
from vfmtok.config import closest_match
from vfmtok.errors import ConfigError
from vfmtok.generators.contract import Generator
from vfmtok.layers.precision import DTYPES, autocast

# Values that change nothing: a command may give them to a family that has no such setting.
NEUTRAL = {
    "cfg_interval": -1, "cfg_schedule": "constant", "cfg_power": 1.0,
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "greedy": False,
    "kv_cache": "auto", "compile": False,
}  # fmt: skip


def generate(
    generator: Generator, labels: Tensor, *, seed: int = 0, sample_indices: Tensor | None = None, **sampling: Any
) -> Tensor:
    """The codes of new images of the classes ``labels`` (B,) int64: ids (B,K) int64 or latents (B,C,h,w).

    Args:
        seed: any integer in [0,2^64).
        sample_indices: (B,) int64, by default 0..B-1: which sample of the seed each row is. Sample n is the same for
            any batch, number of processes or resumed run, up to rounding.
        sampling: the family's own settings, such as ``cfg_scale``; for a GPT see
            ``vfmtok.generators.autoregressive.generate``.

    Raises:
        ConfigError: a label, seed or setting is out of its range, or a setting is none of the family's.
        VFMTokError: the model's numbers are not finite.
    """
    parameters = inspect.signature(generator.sample).parameters.values()
    names = ["compile", *(field.name for field in dataclasses.fields(generator.sampling))]
    names += [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    given = {name: value for name, value in sampling.items() if name in names or NEUTRAL.get(name) != value}
    if unknown := min(given.keys() - set(names), default=None):
        hint = closest_match(unknown, names)
        raise ConfigError(f"sampling from this {type(generator).__name__} has no setting {unknown}{hint}")
    return generator.sample(labels, seed=seed, sample_indices=sample_indices, **given)


def to_precision(generator: Generator, precision: str) -> Generator:
    """Let it sample in "none" (float32), "bf16" or "fp16": the family's way, or with weights of that dtype."""
    if hasattr(generator, "use_precision"):
        generator.use_precision(precision)
        return generator
    return generator.to(DTYPES[precision])


def draw_codes(
    generator: Generator,
    labels: Tensor,
    batch: int,
    world: distributed.World,
    between: Callable[[], None] = lambda: None,
    **settings,
) -> Tensor:
    """Codes (N,...) on the CPU in every process: sample i of the seed has label i, whoever draws it.

    Args:
        batch: samples of one pass of one process.
        between: called before every pass; what it raises, in all processes or in none, ends the drawing.

    All processes make equally many passes of equally many rows (the last are dropped): sharded weights are gathered in
    every pass, and products of another number of rows round differently.

    Raises:
        VFMTokError: in all processes, if one can't sample (its weights are damaged).
    """
    passes_each = -(-len(labels) // (batch * world.size))
    rows = torch.arange(passes_each * world.size * batch).clamp(max=len(labels) - 1)  # the last one again, dropped
    share = rows.view(passes_each, world.size, batch)[:, world.rank]  # (passes,B)
    found = []
    for part in share:
        between()
        with distributed.together():
            found.append(generate(generator, labels[part], sample_indices=part, **settings).to(world.device))
    everyone = distributed.gather_rows(torch.stack(found)[None])  # (world,passes,B,...)
    return everyone.transpose(0, 1).flatten(0, 2)[: len(labels)].cpu()


def draw_images(
    generator: Generator,
    tokenizer: nn.Module,
    labels: Tensor,
    size: int,
    batch: int,
    world: distributed.World,
    between: Callable[[], None] = lambda: None,
    **settings,
) -> np.ndarray:
    """(N,S,S,3) uint8 of ``draw_codes``, decoded in float32 by every process, likewise with ``between``."""
    codes, decoded = draw_codes(generator, labels, min(batch, len(labels)), world, between, **settings), []
    with autocast("none", world.device):
        for part in codes.split(batch):
            between()
            decoded.append(tokenizer.decode_to_uint8(part.to(world.device), size).cpu())
    return torch.cat(decoded).numpy()
