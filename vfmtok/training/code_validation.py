"""How well a generator predicts held-out codes, beside what knows nothing or only frequencies.

Shapes: B batch, N samples, K tokens; a code is ids (N,K) or latents (N,C,h,w).
"""

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.code import Ids
from vfmtok.generators.contract import Generator
from vfmtok.generators.counter_random import Draws

OVERFIT_BY = 0.05  # nats per token above the best validation: an alarm
SEED = 0  # of the random numbers that a held-out loss draws: the same at every validation, of every run


class HeldOutCodes:
    """A code (N,...) and labels (N,), the same in every process, measured in ``batch`` rows per process and pass.

    ``images`` (N,3,S,S) uint8 are for a generator that learns from them.
    """

    def __init__(
        self, code: Tensor, labels: Tensor, batch: int, world: distributed.World, images: Tensor | None = None
    ):
        self.code, self.labels, self.batch, self.world, self.images = code, labels, batch, world, images

    @torch.no_grad()
    def measure(
        self,
        generator: Generator,
        autocast: Callable[[], contextlib.AbstractContextManager],
        between: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Means over the samples: "loss" and what else the generator says of held-out codes.

        The generator is in eval mode. Every process must call it, and makes as many passes as the others: sharded
        weights are gathered in each. ``between`` is called before each; what it raises, in all or none, ends it.
        """
        count, device = len(self.code), self.world.device
        sums: dict[str, Tensor] = {}
        for start in range(0, count, self.batch * self.world.size):
            between()
            rows = start + self.world.rank * self.batch + torch.arange(self.batch)  # (B,)
            valid = rows < count  # beyond the end the last one comes again, uncounted
            rows = rows.clamp(max=count - 1)
            with autocast():
                values = self._values(generator, rows, valid)
            weights = valid.to(device).double()  # (B,)
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + (value.double() * weights).sum()
        total = distributed.sum_over_ranks(torch.stack(list(sums.values()))) / count
        return dict(zip(sums, total.tolist(), strict=True))

    def _values(self, generator: Generator, rows: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Of samples ``rows`` (B,), those ``valid`` (B,): (B,) each."""
        device = self.world.device
        code, labels = self.code[rows].to(device), self.labels[rows].to(device)
        if hasattr(generator, "held_out"):  # all passes of as many rows: a compiled model is compiled for every number
            return generator.held_out(code, labels)
        kept = max(1, int(valid.sum()))  # the loss is a mean: of the rows that count
        draws = Draws(SEED, rows[:kept].to(device))
        seen = {} if self.images is None else {"images": self.images[rows[:kept]].to(device)}
        terms = generator.loss(code[:kept], labels[:kept], draws, **seen)
        values = {"loss": sum(terms.values()), **(terms if len(terms) > 1 else {})}
        return {name: value.double().expand(len(rows)) for name, value in values.items()}


def unigram_cross_entropy(train_ids: Tensor, held_out_ids: Tensor, size: int) -> float:
    """Nats per token of held-out ids under the frequencies of the training ids, one added to every count."""
    counts = torch.bincount(train_ids.flatten(), minlength=size).double() + 1  # (V,)
    return float(-(counts / counts.sum()).log()[held_out_ids.flatten()].mean())


def baselines(train_ids: Tensor, held_out_ids: Tensor, code: Ids) -> dict[str, float]:
    """Nats per token (N,K) of knowing nothing, and of knowing how frequent each id of a segment is: of all tokens, and
    where there are several segments "uniform_0", "unigram_0", ... of each."""
    found, of_segments = {"uniform": 0.0, "unigram": 0.0}, {}
    for index, (segment, part) in enumerate(zip(code.segments, code.slices(), strict=True)):
        values = {
            "uniform": math.log(segment.size),
            "unigram": unigram_cross_entropy(train_ids[:, part], held_out_ids[:, part], segment.size),
        }
        for name, value in values.items():
            found[name] += segment.count / code.num_tokens * value
            of_segments[f"{name}_{index}"] = value
    return found | (of_segments if len(code.segments) > 1 else {})


class CodeAlarms:
    """Lines about trouble that only validation shows, each reported when it begins. A resumed run knows its best."""

    def __init__(self):
        self._best, self._active = math.inf, set()

    def check(self, loss: float, unigram: float, warmed_up: bool) -> list[str]:
        """``loss``: of the better of the weights and their average; ``unigram``: infinite where it means nothing."""
        found = {}
        if loss > self._best + OVERFIT_BY:
            found["overfit"] = (
                f"the held-out loss is {loss:.3f}, {loss - self._best:.3f} above its best: the model over-fits (more "
                "views in the cache, more dropout, a smaller model or fewer steps; the best checkpoint is kept)"
            )
        if warmed_up and loss >= unigram:
            found["unigram"] = (
                f"the held-out loss is {loss:.3f}, no better than knowing how frequent ids are ({unigram:.3f})"
            )
        self._best = min(self._best, loss)
        lines = [line for name, line in found.items() if name not in self._active]
        self._active = set(found)
        return lines

    def state_dict(self) -> dict[str, float | None]:
        return {"best": self._best if math.isfinite(self._best) else None}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self._best = math.inf if state["best"] is None else state["best"]
