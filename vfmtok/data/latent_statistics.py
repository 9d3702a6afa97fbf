"""Mean and standard deviation of a data set's latents: what a generator normalises by.

They are measured once, over all rows and views, in float64 and chunk by chunk, so memory is flat.

Shapes: n latents of a chunk, C channels, h,w places.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.errors import DataError
from vfmtok.files import replace_file
from vfmtok.weights.reading import read

Per = Literal["channel", "position"]


@dataclass(frozen=True)
class LatentStatistics:
    """In the tokenizer's own units.

    Attributes:
        mean, std: (C,1,1), or (C,h,w) where every place has its own, float32; ``std`` is unbiased.
        count: latents that were counted; 0 where a published file does not say.
    """

    mean: Tensor
    std: Tensor
    count: int

    @property
    def per(self) -> Per:
        """What has a mean and a deviation of its own."""
        return "channel" if self.mean.shape[1:] == (1, 1) else "position"

    def per_channel(self) -> "LatentStatistics":
        """(C,1,1): of all places of a channel together, as if measured so (of moments but for a share of 1/count)."""
        whole = self.count or float("inf")  # latents; of each a channel has h*w values
        values = whole * self.mean[0].numel()
        mean, std = self.mean.double(), self.std.double()
        channel = mean.mean((1, 2), keepdim=True)
        within = std.square() * (1 - 1 / whole)
        total = (within + (mean - channel).square()).mean((1, 2), keepdim=True) / (1 - 1 / values)
        return LatentStatistics(channel.float(), total.sqrt().float(), self.count)

    def normalise(self, latents: Tensor) -> Tensor:
        """Raw latents (n,C,h,w) on any device -> float32 of mean 0 and deviation 1."""
        return (latents.float() - self.mean.to(latents.device)) / self.std.to(latents.device)

    def save(self, path: str | Path) -> None:
        """A .safetensors file of three tensors. Raises DataError."""
        tensors = {"mean": self.mean, "std": self.std, "count": torch.tensor(self.count)}
        content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        replace_file(Path(path), lambda file: file.write(content))

    @classmethod
    def load(cls, path: str | Path) -> "LatentStatistics":
        """The inverse of ``save``. Raises WeightsError: no such file, or damaged; DataError: another content."""
        tensors = read(path)
        if set(tensors) != {"mean", "std", "count"}:
            raise DataError(f"{path} holds {sorted(tensors)}, not mean, std and count")
        return checked(tensors["mean"], tensors["std"], int(tensors["count"]), path)


def checked(mean: Tensor, std: Tensor, count: int, source: Any) -> LatentStatistics:
    """Statistics that can be divided by: (C,h,w) each, finite, no standard deviation of 0. Raises DataError."""
    mean, std = mean.float(), std.float()
    if mean.ndim != 3 or mean.shape != std.shape:
        raise DataError(f"{source}: mean {tuple(mean.shape)} and std {tuple(std.shape)} are not (C,h,w) both")
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise DataError(f"{source}: the mean is not finite, or a standard deviation is not above 0")
    return LatentStatistics(mean, std, count)


class StatisticsSum:
    """Statistics in the making: chunks are added in any order and processes merged, all in float64.

    Kept are count, mean and sum of squared deviations of every place (C,h,w), which lose nothing where the mean is
    large beside the deviation (Chan et al., "Updating formulae and a pairwise algorithm", 1979).
    """

    def __init__(self, shape: tuple[int, ...]):
        """shape: (C,h,w)."""
        self.count = 0
        self.mean, self.squares, self.variance = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))

    def add(self, latents: Tensor, std: Tensor | None = None) -> None:
        """latents (n,C,h,w), and where they are means of a posterior its ``std`` (n,C,h,w): counted is then what
        would be drawn from it, E[mean] and Var[mean] + E[std^2]. Raises DataError: a value is not finite."""
        if not len(latents):
            return
        latents = latents.detach().to("cpu", torch.float64)
        mean = latents.mean(0)
        squares = (latents - mean).square_().sum(0)
        variance = torch.zeros_like(mean) if std is None else std.detach().to("cpu", torch.float64).square().sum(0)
        if not (squares.isfinite().all() and variance.isfinite().all()):
            raise DataError("a latent is not finite (NaN or infinite)")
        self._merge(len(latents), mean, squares, variance)

    def _merge(self, count: int, mean: Tensor, squares: Tensor, variance: Tensor) -> None:
        total, difference = self.count + count, mean - self.mean
        if not count:
            return
        self.mean = self.mean + difference * (count / total)
        self.squares = self.squares + squares + difference.square() * (self.count * count / total)
        self.variance = self.variance + variance
        self.count = total

    def merged(self) -> "StatisticsSum":
        """Of all processes together, in the order of ranks; every process must ask and gets the same."""
        whole = StatisticsSum(tuple(self.mean.shape))
        for part in distributed.gather((self.count, self.mean, self.squares, self.variance)):
            whole._merge(*part)
        return whole

    def statistics(self, per: Per = "channel") -> LatentStatistics:
        """Per channel: over all places besides, mean and std (C,1,1). Raises DataError: fewer than two latents, or a
        channel (a place) that never changes."""
        if self.count < 2:
            raise DataError(f"statistics of {self.count} latents: there must be two at least")
        count, mean, squares, noise = self.count, self.mean, self.squares, self.variance / self.count
        if per == "channel":
            places = mean[0].numel()
            squares = squares.sum((1, 2), keepdim=True)  # (C,1,1), within places
            mean, of_places = mean.mean((1, 2), keepdim=True), mean
            squares = squares + self.count * (of_places - mean).square().sum((1, 2), keepdim=True)  # and between
            count, noise = self.count * places, noise.mean((1, 2), keepdim=True)
        std = (squares / (count - 1) + noise).sqrt()
        if not (std > 0).all():
            raise DataError(f"a {per} of the latents has the same value in all of them: nothing to normalise by")
        return LatentStatistics(mean.float(), std.float(), self.count)


def statistics_of(chunks: Iterable[Tensor], shape: tuple[int, ...], per: Per = "channel") -> LatentStatistics:
    """Of this process's chunks (n,C,h,w) and those of all others, which must call it too. Raises DataError."""
    found = StatisticsSum(shape)
    with distributed.together():
        for chunk in chunks:
            found.add(chunk)
    return found.merged().statistics(per)
