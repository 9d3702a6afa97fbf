"""How a codebook is used: the share of codes in use, the perplexity, and the histogram.

Shapes: V codebook size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.data.psnr_and_usage import usage_of_counts
from vfmtok.errors import EvaluationError


@dataclass(frozen=True)
class Usage:
    """usage: codes that occur, as a fraction of V; perplexity: exp of the entropy in nats, 1 ... V."""

    usage: float
    perplexity: float
    histogram: Tensor  # (V,) int64 on the CPU
    tokens: int


class CodebookUsage:
    """Counts of ids as they come, over all ranks. ``update`` never waits for a GPU.

    Args:
        codebook_size: V.
        window: count only the last so many ids of every rank (training prints usage of a recent window,
            published as that of the last 65,536 ids); None counts all.
    """

    def __init__(self, codebook_size: int, window: int | None = None):
        if window is not None and window < 1:
            raise EvaluationError(f"a window must hold at least one id, got {window}")
        self.codebook_size, self.window = codebook_size, window
        self.reset()

    def reset(self) -> None:
        self._counts: Tensor | None = None  # (V+1,) int64; the last counts ids that no codebook has
        self._recent: list[Tensor] = []  # with a window: batches of ids, newest last
        self._recent_ids = 0

    def update(self, ids: Tensor) -> None:
        """ids of any shape, integers in [0,V)."""
        ids = ids.detach().flatten().long()
        if self.window is None:
            self._counts = self._count(ids, self._counts)
            return
        self._recent.append(ids[-self.window :].clone())
        self._recent_ids += len(self._recent[-1])
        while self._recent_ids - len(self._recent[0]) >= self.window:
            self._recent_ids -= len(self._recent.pop(0))

    def compute(self) -> Usage:
        """Of all ranks; every rank must call it.

        Raises:
            EvaluationError: no ids came, or some lie outside the codebook.
        """
        counts = self._counts
        if self._recent:
            counts = self._count(torch.cat(self._recent)[-self.window :], None)
        # Ranks meet on the CPU, since one without ids knows no other device.
        counts = torch.zeros(self.codebook_size + 1, dtype=torch.int64) if counts is None else counts.cpu().clone()
        counts = distributed.sum_over_ranks(counts)
        histogram, outside = counts[:-1], int(counts[-1])
        tokens = int(histogram.sum())
        if outside or not tokens:
            problem = f"{outside} ids lie outside the codebook of {self.codebook_size}" if outside else "no ids"
            raise EvaluationError(f"codebook usage: {problem}")
        return Usage(*usage_of_counts(histogram), histogram, tokens)

    def _count(self, ids: Tensor, counts: Tensor | None) -> Tensor:
        if counts is None:
            counts = torch.zeros(self.codebook_size + 1, dtype=torch.int64, device=ids.device)
        ids = torch.where((ids < 0) | (ids >= self.codebook_size), self.codebook_size, ids)
        return counts.scatter_add_(0, ids, torch.ones_like(ids))
