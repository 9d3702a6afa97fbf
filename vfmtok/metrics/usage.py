"""How a codebook is used: the share of codes in use, the perplexity, and the histogram.

Shapes: V codebook size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.errors import EvaluationError
from vfmtok.metrics.psnr_and_usage import usage_of_counts


@dataclass(frozen=True)
class Usage:
    """usage: codes that occur, as a fraction of V; perplexity: exp of the entropy in nats, 1 ... V."""

    usage: float
    perplexity: float
    histogram: Tensor  # (V,) int64 on the CPU
    tokens: int


class CodebookUsage:
    """Counts of ids as they come, over all ranks, of ``codebook_size`` codes. ``update`` never waits for a GPU."""

    def __init__(self, codebook_size: int):
        self.codebook_size = codebook_size
        self.reset()

    def reset(self) -> None:
        self._counts: Tensor | None = None  # (V+1,) int64; the last counts ids that no codebook has

    def update(self, ids: Tensor) -> None:
        """ids of any shape, integers in [0,V)."""
        ids = ids.detach().flatten().long()
        if self._counts is None:
            self._counts = torch.zeros(self.codebook_size + 1, dtype=torch.int64, device=ids.device)
        ids = torch.where((ids < 0) | (ids >= self.codebook_size), self.codebook_size, ids)
        self._counts.scatter_add_(0, ids, torch.ones_like(ids))

    def compute(self) -> Usage:
        """Of all ranks; every rank must call it.

        Raises:
            EvaluationError: no ids came, or some lie outside the codebook.
        """
        # Ranks meet on the CPU, since one without ids knows no other device.
        empty = torch.zeros(self.codebook_size + 1, dtype=torch.int64)
        counts = distributed.sum_over_ranks(empty if self._counts is None else self._counts.cpu().clone())
        histogram, outside = counts[:-1], int(counts[-1])
        tokens = int(histogram.sum())
        if outside or not tokens:
            problem = f"{outside} ids lie outside the codebook of {self.codebook_size}" if outside else "no ids"
            raise EvaluationError(f"codebook usage: {problem}")
        return Usage(*usage_of_counts(histogram), histogram, tokens)
