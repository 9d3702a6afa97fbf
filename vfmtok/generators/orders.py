"""Random orders of an image's tokens, annealed to the raster order: how RAR (arXiv 2411.00776) trains, and a GPT with
``permuted``.

Shapes: B batch, K tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vfmtok.config import require
from vfmtok.errors import ConfigError
from vfmtok.generators.counter_random import Draws


@dataclass(frozen=True)
class Annealing:
    """The share of random orders over a run: 1 before step ``start``, falling linearly to 0 at step ``end``, then 0.

    Steps count from 0. Both None: half and three quarters of the run, as published.
    """

    start: int | None
    end: int | None

    def __post_init__(self):
        both = (self.start is None) == (self.end is None)
        require(both, "anneal_end", f"must be null where anneal_start is, and only there ({self.start})", self.end)
        ordered = self.start is None or 0 <= self.start <= self.end
        require(ordered, "anneal_end", f"must not be before anneal_start = {self.start}", self.end)

    def steps_of(self, run_steps: int | None) -> tuple[float, float]:
        """(start, end) in a run of so many steps. Without an end of the run, relative ones never come."""
        if self.start is not None:
            return self.start, self.end
        return (torch.inf, torch.inf) if run_steps is None else (run_steps // 2, run_steps * 3 // 4)

    def random_share(self, step: int, run_steps: int | None = None) -> float:
        """The share of the sequences of a step that train on a random order."""
        start, end = self.steps_of(run_steps)
        if step < start:
            return 1.0
        return 0.0 if step >= end else 1.0 - (step - start) / (end - start)

    def check_fits(self, run_steps: int) -> None:
        """Raise ConfigError if the run ends before all orders are raster, the one in which images are drawn."""
        if self.end is not None and self.end > run_steps:
            raise ConfigError(
                f"generator.anneal_end {self.end} lies beyond the run's {run_steps} steps, which would end on random "
                "orders: set anneal_start and anneal_end to null (half and three quarters of the run) or to steps of it"
            )


def training_orders(code: Tensor, draws: Draws | None, random_share: float) -> Tensor:
    """code (B,K) -> order (B,K) int64, the k-th token's position: a random permutation with this chance, else raster.

    A function of (seed, sample), by ``draws``; without them PyTorch's generator decides.
    """
    batch, tokens = code.shape
    if draws is None:
        keys, chance = torch.rand(batch, tokens, device=code.device), torch.rand(batch, 1, device=code.device)
    else:
        keys, chance = draws.uniform("order", tokens), draws.uniform("orders and labels", 1)  # (B,K), (B,1)
    # Equal keys (of 2^24 values) keep their raster order: the bias is far below what a sample can show.
    return torch.where(chance < random_share, keys.argsort(dim=1, stable=True), raster(code))


def raster(code: Tensor) -> Tensor:
    """code (B,K) -> the raster order (B,K) int64: 0, 1, ..., K-1."""
    return torch.arange(code.shape[1], device=code.device).expand(code.shape)


def known_first(known: Tensor) -> Tensor:
    """known (B,K) bool -> order (B,K) int64: the known positions, then the others; row by row within both."""
    return known.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
