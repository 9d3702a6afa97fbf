"""From noise to latents along a velocity field: grids of times, Euler, Heun, and the SDE of SiT.

The state is float64, the network's numbers are its own dtype. Noise is a function of (seed, sample, step, element).

Shapes: B batch, C channels, S side of a latent, Z width of the class token, K steps.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vfmtok.config import require
from vfmtok.errors import ConfigError, VFMTokError
from vfmtok.generators.counter_random import normals
from vfmtok.generators.diffusion.config import FlowSampling
from vfmtok.generators.diffusion.flow import shift_times
from vfmtok.generators.diffusion.guidance import FlowGuidance, guided_velocity
from vfmtok.generators.diffusion.network import Network

SDE_LAST_NOISY = 0.04  # the noise level of the SDE's last evaluation, whose step to 0 adds no noise

State = tuple[Tensor, Tensor | None]  # (B,C,S,S) and the class token (B,Z) or None, float64
Velocity = Callable[[State, float], State]
Noises = Callable[[int], State]  # of a step


def time_grid(method: str, steps: int, shift: float = 1.0, last: float = 0.0) -> list[float]:
    """K+1 noise levels from 1 down to ``last``, more of them near noise where ``shift`` > 1: ``shift_times`` of even
    ones. (LightningDiT's ``timestep_shift`` b is 1/b here, and its number of points one more than steps.)

    With "sde" the even ones end at 0.04, and 0 follows.
    """
    if method == "sde":
        even = torch.linspace(1, SDE_LAST_NOISY, steps, dtype=torch.float64)
        return [*shift_times(even, shift).tolist(), 0.0]
    even = 1 - (1 - last) * torch.arange(steps + 1, dtype=torch.float64) / steps
    return shift_times(even.clamp(min=last), shift).tolist()


def euler(state: State, times: Sequence[float], velocity: Velocity, noises: Noises) -> State:
    """x += (t' - t) v(x, t)."""
    for t, following in pairwise(times):
        state = _moved(state, velocity(state, t), following - t)
    return state


def heun(state: State, times: Sequence[float], velocity: Velocity, noises: Noises) -> State:
    """The mean of the velocities here and where Euler's step would lead, in every interval."""
    for t, following in pairwise(times):
        h, here = following - t, velocity(state, t)
        there = velocity(_moved(state, here, h), following)
        state = _moved(_moved(state, here, h / 2), there, h / 2)
    return state


def sde(state: State, times: Sequence[float], velocity: Velocity, noises: Noises) -> State:
    """Euler-Maruyama with diffusion 2t: the drift is v - t s with the score s = -(x + (1-t) v) / t.

    The step to 0 adds no noise.
    """
    for step, (t, following) in enumerate(pairwise(times), 1):
        h, v = following - t, velocity(state, t)
        drift = tuple(
            None if part is None else speed + (part + (1 - t) * speed) for part, speed in zip(state, v, strict=True)
        )
        state = _moved(state, drift, h)
        if following > 0:
            state = _moved(state, noises(step), (2 * t * -h) ** 0.5)
    return state


METHODS = {"euler": euler, "heun": heun, "sde": sde}


def integrate(
    dit: Network,
    labels: Tensor,
    method: str,
    times: Sequence[float],
    guidance: FlowGuidance,
    noises: Noises,
    compile: bool = False,
) -> State:
    """labels (B,) -> the normalised latents and class token at the end of ``times``, from noise at their beginning."""

    forward = _compiled(type(dit)) if compile else None

    def velocity(state: State, t: float) -> State:
        return guided_velocity(dit, state[0], t, labels, guidance, state[1], forward)

    return METHODS[method](noises(0), times, velocity, noises)


@cache
def _compiled(kind: type) -> Callable:
    return torch.compile(kind.forward)


def counted_noises(dit: Network, seed: int, samples: Tensor) -> Noises:
    """The noise of samples (B,) int64 at every step: the latent's elements, then the class token's."""
    shape, count = dit.code.shape, torch.Size(dit.code.shape).numel()

    def of_step(step: int) -> State:
        number = torch.full((1,), step, device=samples.device)
        noise = normals(seed, samples, number, count + (dit.config.token_dim or 0)).double()  # (B,C*S*S+Z)
        token = noise[:, count:] if dit.config.token_dim is not None else None
        return noise[:, :count].unflatten(1, shape), token

    return of_step


def given_noises(dit: Network, noises: Any, batch: int | None = None) -> Noises:
    """See ``generate_latents``; ``batch`` is B, where that is known."""
    steps = [noises] if _is_of_one_step(dit, noises) else noises
    device = dit.patches.weight.device

    def of_step(step: int) -> State:
        if step >= len(steps):
            raise ConfigError(f"noises are given for {len(steps)} steps, and step {step} needs some (0 is the start)")
        parts = _parts_of_noise(dit, steps[step], batch, f"noises of step {step}")
        return tuple(None if part is None else part.to(device, torch.float64) for part in parts)

    return of_step


def _is_of_one_step(dit: Network, noises: Any) -> bool:
    """Whether they are the start alone: a tensor whose first axis is the samples, or a pair with the class token."""
    if isinstance(noises, Tensor):
        return noises.ndim in (2, 4)
    if len(noises) != 2 or not isinstance(noises[0], Tensor) or noises[0].ndim != 4:
        return False
    return noises[1] is None or (dit.config.token_dim is not None and getattr(noises[1], "ndim", 0) == 2)


def _parts_of_noise(dit: Network, given: Any, batch: int | None, name: str) -> State:
    """One step's, in any of the forms that ``generate_latents`` takes. Raises ConfigError for other shapes."""
    shape, width = torch.Size(dit.code.shape), dit.config.token_dim or 0
    if isinstance(given, Tensor) and given.shape[1:].numel() == shape.numel() + width:
        flat = given.flatten(1)  # (B,C*S*S+Z)
        given = flat[:, : shape.numel()].unflatten(1, shape), flat[:, shape.numel() :] if width else None
    latent, token = given if not isinstance(given, Tensor) and len(given) == 2 else (given, None)
    found = [tuple(getattr(part, "shape", ())) for part in (latent, token)]
    count = batch if batch is not None else (found[0] or (0,))[0]
    expected = [(count, *shape), (count, width) if width else ()]
    pair = f" and {expected[1]} of the class token" if width else ""
    shown = " and ".join(map(str, filter(None, found)))
    require(found == expected, name, f"must be {expected[0]}{pair}, or flat", shown)
    return latent, token


@torch.no_grad()
def generate_latents(
    dit: Network,
    labels: Tensor,
    method: str = "euler",
    steps: int = 249,
    shift: float | None = 1.0,
    last: float = 0.0,
    guidance: FlowGuidance = FlowGuidance(),  # noqa: B008 (frozen)
    seed: int = 0,
    sample_indices: Tensor | None = None,
    noises: Any = None,
    compile: bool = False,
) -> Tensor:
    """Latents (B,C,S,S) float32 of new images of the classes ``labels`` (B,) int64, in the tokenizer's own units.

    Of a network that has no statistics of latents (``statistics.known``), as published files of weights have none, they
    are what the network works on: normalised. Commands refuse such a generator.

    Args:
        method: "euler", "heun" (two evaluations a step) or "sde".
        steps: from noise to data.
        shift: see ``time_grid``; None: that of the times it was trained with.
        last: the noise level, before the shift, at which to stop; 0 with "sde".
        seed: any integer in [0,2^64).
        sample_indices: (B,) int64, by default 0..B-1: which sample of the seed each row is. Sample n is the same for
            any batch or number of processes, up to rounding.
        noises: instead of the seed's: item k is the noise of step k, 0 being the start and "sde" needing those of steps
            1..K-1 too. (B,C,S,S), or with a class token a pair with (B,Z), or both flat (B,C*S*S+Z). One item alone,
            not in a list, is the start.
        compile: run the network through ``torch.compile``, once for every batch size.

    Raises:
        ConfigError: a label, seed or setting is out of its range, noises have another shape, or the model that guides
            makes other latents.
        ValueError: labels or sample_indices are no vector of integers.
        VFMTokError: the model's numbers are not finite.
    """
    FlowSampling(method=method, steps=steps, shift=shift, last=last)  # raises ConfigError
    shift = dit.config.time_shift if shift is None else shift
    device = dit.patches.weight.device
    labels = _checked_labels(dit, torch.as_tensor(labels)).to(device)
    models = [dit] if guidance.weaker is None else [dit, guidance.fitting(dit).weaker.to(device)]
    if noises is None:
        require(0 <= seed < 2**64, "seed", "must be in [0,2^64)", seed)
        samples = torch.arange(len(labels), device=device) if sample_indices is None else sample_indices
        if samples.shape != labels.shape or samples.dtype != torch.int64:
            shape = tuple(samples.shape)
            raise ValueError(f"sample_indices must be ({len(labels)},) int64, got {shape} {samples.dtype}")
        source = counted_noises(dit, seed, samples.to(device))
    else:
        source = given_noises(dit, noises, len(labels))
    training = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        state, _ = integrate(dit, labels, method, time_grid(method, steps, shift, last), guidance, source, compile)
    finally:
        for model, before in zip(models, training, strict=True):
            model.train(before)
    if (~state.isfinite()).any():
        raise VFMTokError("the model's velocities are not finite: damaged weights, or float16 that overflows")
    return dit.statistics.restore(state).float()


def _checked_labels(dit: Network, labels: Tensor) -> Tensor:
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels must be (B,) int64, got {tuple(labels.shape)} {labels.dtype}")
    if len(labels):
        smallest, largest = torch.stack(labels.aminmax()).tolist()
        fits = 0 <= smallest <= largest <= dit.num_classes
        require(fits, "labels", f"must be in [0,{dit.num_classes + 1})", f"{smallest} to {largest}")
    return labels


def _moved(state: State, direction: State, length: float) -> State:
    return tuple(None if part is None else part + length * step for part, step in zip(state, direction, strict=True))
