"""What a table may say of a row besides what was measured of it: the size of its models, how long they trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vfmtok.code import Ids
from vfmtok.evaluation.model_size import without_weights
from vfmtok.files import read_json
from vfmtok.generators import build_generator
from vfmtok.tokenizers import build_tokenizer

if TYPE_CHECKING:
    from vfmtok.study.rows import Row
    from vfmtok.study.steps import Step

STORED_BITS = 16  # of a latent's value, as caches keep them


@dataclass(frozen=True)
class Fact:
    """``of``: (row, its steps of a seed by kind) -> the number, None while it is not known."""

    of: Callable[[Row, dict[str, Step]], float | None]
    about: str


def _bits(row: Row, steps: dict[str, Step]) -> float:
    return row.code.bits if isinstance(row.code, Ids) else STORED_BITS * math.prod(row.code.shape)


def _tokenizer_parameters(row: Row, steps: dict[str, Step]) -> float:
    return _trained_millions(build_tokenizer, without_weights(row.tokenizer))


def _generator_parameters(row: Row, steps: dict[str, Step]) -> float | None:
    return None if row.generator is None else _trained_millions(build_generator, steps["generator"].recipe.generator)


def _minutes(kind: str) -> Callable[[Row, dict[str, Step]], float | None]:
    def minutes(row: Row, steps: dict[str, Step]) -> float | None:
        step = steps.get(kind)
        return None if step is None or not step.done else read_json(step.folder / "step.json")["seconds"] / 60

    return minutes


def _trained_millions(build: Callable[[Any], nn.Module], config: Any) -> float:
    with torch.device("meta"):
        model = build(config)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) / 1e6


FACTS: dict[str, Fact] = {
    "bits per image": Fact(_bits, f"ids: the sum of log2(codebook size); latents: {STORED_BITS} bits a value"),
    "tokenizer parameters": Fact(_tokenizer_parameters, "millions that are trained"),
    "generator parameters": Fact(_generator_parameters, "millions that are trained"),
    "tokenizer minutes": Fact(_minutes("tokenizer"), "by the clock, of the last start if it was interrupted"),
    "generator minutes": Fact(_minutes("generator"), "by the clock, of the last start if it was interrupted"),
}
