"""How a codebook is used: the share of codes in use, and the perplexity of their frequencies.

Token caches print them, training logs them, the evaluation sums them over ranks: all by the formulas here.

Shapes: V codebook size, N records.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.errors import EvaluationError


def usage_of_counts(counts: Tensor) -> tuple[float, float]:
    """How often each code occurred, (V,) integers and not all 0 -> the share of codes that occur, and the perplexity:
    exp of the entropy of their frequencies in nats, 1 ... V."""
    counts = counts.cpu().double()  # MPS has no float64
    p = counts / counts.sum()
    return (counts > 0).double().mean().item(), (-torch.xlogy(p, p).sum()).exp().item()


def count_codes(ids: np.ndarray, size: int) -> Tensor:
    """(V,) int64 over all of ids (N,...), which may be a memory map: it is read in parts."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(ids), 4096):
        counts += np.bincount(ids[start : start + 4096].ravel(), minlength=size)
    return torch.from_numpy(counts)


@dataclass(frozen=True)
class CodebookUsage:
    """usage: codes that occur, as a fraction of V; perplexity: exp of the entropy in nats, 1 ... V."""

    usage: float
    perplexity: float
    histogram: Tensor  # (V,) int64 on the CPU
    tokens: int


class CodeCounter:
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

    def compute(self) -> CodebookUsage:
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
        return CodebookUsage(*usage_of_counts(histogram), histogram, tokens)
