"""How much of each codebook is used, and the cure for its collapse on small data sets.

Small sets drive the published quantizer to a single code within a few hundred steps. Three measures together
keep nearly all codes in use: first steps without quantization, a codebook that starts as the k-means centres of real
latents, and codes that nobody uses becoming latents of the batch at hand. All processes do the same to the same
latents, in the order of the global batch, so their codebooks stay equal and do not depend on their number.

A code of several segments has a codebook for each, and each is treated by itself.

Shapes: B batch, K tokens, V codebook size, E code dimensions, N latents.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok import distributed
from vfmtok.code import Ids
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.errors import SharedError
from vfmtok.metrics.usage import usage_of_counts
from vfmtok.training.recipe import CodebookConfig
from vfmtok.training.tokenizer_passes import Made
from vfmtok.training.trained_parts import evaluating
from vfmtok.training.validation import read_images

if TYPE_CHECKING:
    from vfmtok.training.tokenizer_run import TokenizerRun

LATENTS_PER_CODE = 32  # that k-means sees
KMEANS_ITERATIONS = 20
OTHER_SEED = 1 << 32  # between the random numbers of two segments


@dataclass(frozen=True)
class Usage:
    used: float  # fraction of the codes that occurred in the window
    perplexity: float  # exp of the entropy of their frequencies


class CodebookCare:
    """Counts codes over windows of tokens, and revives those without use.

    Args:
        quantizers: whose codes they are, one for each segment of the code; k-means and revival need cosine quantizers,
            which have a ``codebook``. None at all: codes are counted, and that is it.
        averages: other copies of each codebook that revived rows are written to as well (the EMA's).
        optimizer: whose moments of revived rows are cleared.
        images_per_step: over all processes. A window is whole steps, in which every segment has ``config.window``
            tokens or more.
        code: of the tokenizer: its segments are counted apart.
    """

    def __init__(
        self,
        quantizers: Sequence[nn.Module],
        averages: Sequence[Sequence[Tensor]],
        optimizer: torch.optim.Optimizer | None,
        config: CodebookConfig,
        images_per_step: int,
        seed: int,
        device: torch.device,
        code: Ids,
    ):
        self.quantizers, self.averages, self.optimizer = quantizers, averages, optimizer
        self.config, self.seed = config, seed
        fewest = min(segment.count for segment in code.segments)
        self.window_steps = math.ceil(config.window / (images_per_step * fewest))
        self.segments = list(zip(code.slices(), code.segments, strict=True))  # columns of the ids, what they are
        self._sizes = [segment.size for segment in code.segments]
        self._ids: list[Tensor] = []  # of the step's micro-batches, (b,K)
        self._latents: list[tuple[Tensor, ...]] = []  # and of each segment (b,K,E)
        self._counts = torch.zeros(sum(self._sizes), dtype=torch.int64, device=device)  # of this process
        self._last = torch.zeros_like(self._counts)  # the last whole window
        self._last_is_global = True

    def before_step(self, step: int) -> None:
        for quantizer in self.quantizers:
            quantizer.continuous = step < self.config.continuous_steps

    def ends_window(self, step: int) -> bool:
        """Whether step 0, 1, ... is the last of a window. Counting begins when quantization does."""
        return (step + 1 - self.config.continuous_steps) % self.window_steps == 0

    def note(self, made: Made) -> None:
        """Keep the ids of a pass, and for revival its latents, until the step is done.

        Raises SharedError if a tokenizer's output lacks them (see ``TokenizerOutput``).
        """
        self._ids.append(_present(made, "ids", "usage of the codebook is counted by"))
        if self.config.revive:
            self._latents.append(latents_of(made, "codebook.revive takes new codes from"))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Count this process's ids of the step's passes."""
        (ids, latents), self._ids, self._latents = (self._ids, self._latents), [], []
        if step < self.config.continuous_steps:
            return
        starts = itertools.accumulate(self._sizes, initial=0)
        rows = torch.cat(ids)  # (B,K)
        flat = torch.cat(
            [(rows[:, part] + start).flatten() for (part, _), start in zip(self.segments, starts, strict=False)]
        )
        self._counts.scatter_add_(0, flat, torch.ones_like(flat))  # bincount would wait for the device
        if not self.ends_window(step):
            return
        self._last, self._last_is_global = self._counts.clone(), False
        self._counts.zero_()
        if self.config.revive:
            dead = (self._global_last() == 0).split(self._sizes)
            for segment, parts in enumerate(zip(*latents, strict=True)):
                self._revive(segment, step, dead[segment], torch.cat([part.flatten(0, 1) for part in parts]))

    def usage(self) -> list[Usage]:
        """Of each segment in the last whole window, over all processes (each must ask); none before there is one."""
        counts = self._global_last()
        if not counts.any():
            return []
        return [Usage(*usage_of_counts(part)) for part in counts.split(self._sizes)]

    def numbers(self) -> dict[str, float]:
        """For the log: of the segment that uses its codebook least, and of each where there are several."""
        found = self.usage()
        if not found:
            return {}
        least = min(found, key=lambda usage: usage.used)
        values = {"codebook/usage": least.used, "codebook/perplexity": least.perplexity}
        for index, usage in enumerate(found if len(found) > 1 else ()):
            values |= {f"codebook/usage_{index}": usage.used, f"codebook/perplexity_{index}": usage.perplexity}
        return values

    def _global_last(self) -> Tensor:
        if not self._last_is_global:
            self._last, self._last_is_global = distributed.sum_over_ranks(self._last), True
        return self._last

    def _revive(self, segment: int, step: int, dead: Tensor, latents: Tensor) -> None:
        """Rows of codes that the last window did not use, ``dead`` (V,), become latents (N,E), chosen at random."""
        latents = F.normalize(distributed.gather_rows(latents.float()), dim=-1)  # (all N,E)
        generator = torch.Generator().manual_seed((self.seed + OTHER_SEED * segment) * 1_000_003 + step)
        chosen = torch.randint(len(latents), (len(dead),), generator=generator).to(latents.device)
        rows = latents[chosen]  # (V,E): for every code, used or not, so that nobody need know how many are dead
        dead = dead[:, None] & rows.isfinite().all(dim=1, keepdim=True)  # a step that is skipped may end a window
        codebook = self.quantizers[segment].codebook
        for table in (codebook, *self.averages[segment]):
            table.copy_(torch.where(dead, rows.to(table.dtype), table))
        for moment in self.optimizer.state.get(codebook, {}).values():
            if moment.shape == codebook.shape:
                moment.masked_fill_(dead, 0)

    @torch.no_grad()
    def start_codebook(self, segment: int, latents: Tensor) -> None:
        """k-means over latents (N,E), the same in every process."""
        codebook = self.quantizers[segment].codebook
        centres = spherical_kmeans(latents, len(codebook), self.seed + OTHER_SEED * segment)
        distributed.broadcast(centres)  # sums on a GPU may round differently in every process
        for table in (codebook, *self.averages[segment]):
            table.copy_(centres)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors of all processes together; every process must ask."""
        return {"counts": distributed.sum_over_ranks(self._counts.clone()), "last": self._global_last().clone()}

    def load_state_dict(self, state: dict[str, Tensor], is_main: bool) -> None:
        self._last.copy_(state["last"])
        self._last_is_global = True
        if is_main:  # the sum over processes must be the saved one
            self._counts.copy_(state["counts"])


def start_codebooks(run: "TokenizerRun") -> None:
    """Codebooks become the k-means centres of latents of training images, the same images for any world."""
    config, world, tokenizer = run.tokenizer.config, run.world, run.tokenizer
    wanted = max(LATENTS_PER_CODE * segment.size // segment.count + 1 for segment in config.code.segments)
    count = min(wanted, len(run.records))
    per_process = -(-count // world.size)  # equal shares: the last ones begin again at the first image
    chosen = np.arange(per_process * world.size) % count * len(run.records) // count
    share = chosen[world.rank * per_process :][:per_process]
    images = read_images(run.records, EvaluationCrop(config.image_size), share, run.recipe.data.num_workers)
    found = []  # of each micro-batch, latents of each segment
    with torch.no_grad(), run.autocast(), evaluating(tokenizer, run.recipe.train):
        for part in images.split(run.plan.micro_batch):
            encoding = tokenizer.encode(to_unit_range(part.to(world.device)))
            found.append(latents_of(encoding, "codebook.kmeans makes a codebook of"))
    for index, (segment, parts) in enumerate(zip(config.code.segments, zip(*found, strict=True), strict=True)):
        latents = torch.cat([part.flatten(0, 1) for part in parts])  # (this process's images * K,E)
        run.care.start_codebook(index, distributed.gather_rows(latents)[: count * segment.count])


def latents_of(found: Any, purpose: str) -> tuple[Tensor, ...]:
    """Those of each segment, (B,K,E), in what an ``encode`` or a training pass returned."""
    latents = _present(found, "latents", purpose)
    return latents if isinstance(latents, tuple) else (latents,)


def _present(found: Any, name: str, purpose: str) -> Any:
    value = getattr(found, name, None)
    if value is None:
        raise SharedError(f"{purpose} `{name}`, which this tokenizer does not give (vfmtok/tokenizers/contract.py)")
    return value


def spherical_kmeans(latents: Tensor, count: int, seed: int) -> Tensor:
    """``count`` unit vectors that represent latents (N,E) by cosine: (count,E), float32. Lloyd's iterations.

    A centre nobody is nearest to becomes a random latent.
    """
    z = F.normalize(latents.float(), dim=-1)  # (N,E)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        order = torch.randperm(len(z), generator=generator)
        order = order.repeat(math.ceil(count / len(z)))[:count]
        return z[order.to(z.device)]  # (count,E)

    centres = draw()
    for _ in range(KMEANS_ITERATIONS):
        nearest = torch.cat([(block @ centres.t()).argmax(-1) for block in z.split(4096)])  # (N,)
        sums = torch.zeros_like(centres).index_add_(0, nearest, z)
        empty = torch.bincount(nearest, minlength=count)[:, None] == 0
        centres = torch.where(empty, draw(), F.normalize(sums, dim=-1))
    return centres
