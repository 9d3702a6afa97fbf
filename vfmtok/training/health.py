"""Run health: means kept on the device, skipped steps, bounds of losses, and one-line alarms."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.errors import SharedError

MAX_SKIPPED_IN_A_ROW = 10
LOOK_EVERY = 10  # steps between looks at the count of skipped steps, where looking waits for a GPU


class Diverged(SharedError):
    """The loss is not finite and does not recover."""


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Pace:
    """Steps per second of training alone: what is done within ``paused`` does not count."""

    def __init__(self, step: int):
        self._step, self._since = step, time.perf_counter()

    def read(self, step: int) -> float:
        """Since the last read."""
        now = time.perf_counter()
        rate = (step - self._step) / (now - self._since)
        self._step, self._since = step, now
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin


class Meter:
    """Means of named scalars over the steps since the last ``read``, and over all processes.

    Adding waits for nothing; reading is one all-reduce and one wait for the device.
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        names = sorted(self._sums)
        if not names:
            return {}
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        means = distributed.sum_over_ranks(means) / distributed.world_size()
        self._sums, self._counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))


class SkippedSteps:
    """Counts steps that a non-finite gradient made an optimizer skip, and ends a run that skips too many in a row.

    Each network has its own: one that learns is not counted with one that does not. The norm is that of the all-reduced
    gradient, so all processes count alike.
    """

    def __init__(self, device: torch.device, network: str = "model", also: str = ""):
        self._network, self._also = network, also  # what else makes steps of this network be skipped
        self._every = 1 if device.type == "cpu" else LOOK_EVERY
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # in a row, in all
        self._since_look = 0

    def add(self, norm: Tensor) -> None:
        skipped = (~norm.isfinite()).long()
        self._counts = torch.stack([(self._counts[0] + 1) * skipped, self._counts[1] + skipped])

    def check(self, step: int, losses: dict[str, Tensor]) -> None:
        """Raises Diverged after ``MAX_SKIPPED_IN_A_ROW`` skipped steps in a row, naming the losses of the last."""
        self._since_look += 1
        if self._since_look < self._every:
            return
        self._since_look = 0
        if int(self._counts[0]) >= MAX_SKIPPED_IN_A_ROW:
            values = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in losses.items())
            raise Diverged(
                f"stopped at step {step}: the {self._network}'s gradient was not finite{self._also} for "
                f"{int(self._counts[0])} steps in a row (losses of the last: {values}). Nothing of these steps is in "
                "the weights. Lower the learning rate, use --mixed-precision bf16 or none instead of fp16, or look for "
                "the images at fault"
            )

    @property
    def total(self) -> int:
        return int(self._counts[1])

    def state_dict(self) -> dict[str, list[int]]:
        return {"counts": self._counts.tolist()}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        self._counts = torch.tensor(state["counts"], dtype=torch.int64, device=self._counts.device)


class LossBounds:
    """Which steps to skip since their losses are too large: an option, after VFM-VAE's "safe loss".

    A step is refused if a loss is not finite, above ``most``, or above ``factor`` times what it was at the last step
    that was not refused. Losses are means over a step's passes and over processes, so all processes refuse alike.
    Refused steps are counted by ``SkippedSteps``, which ends a run that has ten in a row.

    Args:
        names: of the losses; one that takes no part in a step is left alone.
        first_image: ``factor`` counts once the run has seen so many images.
    """

    SMALLEST = 1e-6  # of a loss that others are compared with

    def __init__(
        self,
        names: tuple[str, ...],
        device: torch.device,
        factor: float = math.inf,
        first_image: int = 0,
        most: float = math.inf,
    ):
        self.names, self.factor, self.first_image, self.most = names, factor, first_image, most
        self._device = device
        self._last: dict[str, Tensor] = {}
        self._noted: dict[str, list[Tensor]] = {}

    def note(self, losses: dict[str, Tensor]) -> None:
        """The losses of one pass, by name; others than ``names`` are passed over."""
        for name in self.names:
            if name in losses:
                self._noted.setdefault(name, []).append(losses[name].detach().float())

    def accept(self, images_seen: int) -> Tensor:
        """Whether to take the step whose passes were noted: a bool scalar on the device, alike in all processes.

        Args:
            images_seen: before the step.
        """
        noted, self._noted = self._noted, {}
        if not noted:
            return torch.ones((), dtype=torch.bool, device=self._device)
        means = torch.stack([torch.stack(values).mean() for values in noted.values()])
        means = distributed.sum_over_ranks(means) / distributed.world_size()
        accepted = (means.isfinite() & (means <= self.most)).all()
        now = dict(zip(noted, means.unbind(), strict=True))
        if images_seen >= self.first_image:
            for name, last in self._last.items():
                if name in now:
                    accepted = accepted & ((now[name] <= self.factor * last) | (last <= self.SMALLEST))
        for name, value in now.items():
            self._last[name] = torch.where(accepted, value, self._last.get(name, torch.zeros_like(value)))
        return accepted

    def state_dict(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._last.items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._last = {name: torch.tensor(value, device=self._device) for name, value in state.items()}


@dataclass
class Alarms:
    """Conditions that mean trouble, each reported when it begins and not again while it lasts."""

    min_usage: float = 0.05  # of the codebook, over its window
    min_disc_loss: float = 0.02  # hinge and vanilla losses near 0: the discriminator recognises all fakes
    max_data_wait: float = 0.3  # of the time

    def __post_init__(self):
        self._active: set[str] = set()
        self._skipped = 0
        self._reports = 0

    def check(self, values: dict[str, float]) -> list[str]:
        """The lines of alarms that begin with these values."""
        found = {}
        usage = values.get("codebook/usage")
        if usage is not None and usage < self.min_usage:
            of_each = [value for name, value in values.items() if name.startswith("codebook/usage_")]
            which = f" of codebook {of_each.index(usage)}" if of_each else ""
            found["usage"] = (
                f"only {usage:.2%} of the codes{which} are used: the codebook collapses (codebook.continuous_steps, "
                "codebook.kmeans and codebook.revive are the cure)"
            )
        disc = values.get("loss/discriminator")
        if disc is not None and disc < self.min_disc_loss:
            found["discriminator"] = (
                f"the discriminator's loss is {disc:.3f}: it wins outright and teaches nothing (a later start, "
                "a smaller adversarial.weight or adversarial.lecam_weight may help)"
            )
        if values.get("latents/outside"):
            found["latents"] = (
                f"normalised latents have standard deviation {values['latents/std']:.3g} on average, some batches none "
                "in 0.5 to 2: the statistics are of other latents, or the latents were normalised before"
            )
        wait = values.get("data_wait")
        self._reports += 1
        if wait is not None and wait > self.max_data_wait and self._reports > 1:  # the first one waits for the workers
            found["data"] = f"{wait:.0%} of the time goes to waiting for data: use more --num-workers"
        lines = [line for name, line in found.items() if name not in self._active]
        self._active = set(found)
        skipped = int(values.get("skipped_steps", 0))
        if skipped > self._skipped:
            lines.append(f"{skipped - self._skipped} steps were skipped, since their gradients were not finite")
        self._skipped = skipped
        return lines
