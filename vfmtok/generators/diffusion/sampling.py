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


def given_noises(dit: Network, noises: Any) -> Noises:
    """See ``generate_latents``."""
    steps = [noises] if isinstance(noises, Tensor) and noises.ndim == 4 else noises
    count = torch.Size(dit.code.shape).numel()
    device = dit.patches.weight.device

    def of_step(step: int) -> State:
        if step >= len(steps):
            raise ConfigError(f"noises are given for {len(steps)} steps, and step {step} needs some (0 is the start)")
        given = steps[step]
        if isinstance(given, Tensor):
            flat = given.flatten(1)  # (B,C*S*S+Z)
            given = flat[:, :count].unflatten(1, dit.code.shape), flat[:, count:] if flat.shape[1] > count else None
        return tuple(None if part is None else part.to(device, torch.float64) for part in given)

    return of_step


@torch.no_grad()
def generate_latents(
    dit: Network,
    labels: Tensor,
    method: str = "euler",
    steps: int = 249,
    shift: float = 1.0,
    last: float = 0.0,
    guidance: FlowGuidance = FlowGuidance(),  # noqa: B008 (frozen)
    seed: int = 0,
    sample_indices: Tensor | None = None,
    noises: Any = None,
    compile: bool = False,
) -> Tensor:
    """Latents (B,C,S,S) float32 of new images of the classes ``labels`` (B,) int64, in the tokenizer's own units.

    Args:
        method: "euler", "heun" (two evaluations a step) or "sde".
        steps: from noise to data.
        shift: see ``time_grid``.
        last: the noise level, before the shift, at which to stop; 0 with "sde".
        seed: any integer in [0,2^64).
        sample_indices: (B,) int64, by default 0..B-1: which sample of the seed each row is. Sample n is the same for
            any batch or number of processes, up to rounding.
        noises: instead of the seed's: item k is the noise of step k, 0 being the start and "sde" needing those of steps
            1..K-1 too. (B,C,S,S), or with a class token a pair with (B,Z), or both flat (B,C*S*S+Z).
        compile: run the network through ``torch.compile``, once for every batch size.

    Raises:
        ConfigError: a label, seed or setting is out of its range.
        VFMTokError: the model's numbers are not finite.
    """
    FlowSampling(method=method, steps=steps, shift=shift, last=last)  # raises ConfigError
    device = dit.patches.weight.device
    labels = _checked_labels(dit, labels).to(device)
    if noises is None:
        require(0 <= seed < 2**64, "seed", "must be in [0,2^64)", seed)
        samples = torch.arange(len(labels), device=device) if sample_indices is None else sample_indices
        if samples.shape != labels.shape or samples.dtype != torch.int64:
            shape = tuple(samples.shape)
            raise ValueError(f"sample_indices must be ({len(labels)},) int64, got {shape} {samples.dtype}")
        source = counted_noises(dit, seed, samples.to(device))
    else:
        source = given_noises(dit, noises)
    training = dit.training
    dit.eval()
    try:
        state, _ = integrate(dit, labels, method, time_grid(method, steps, shift, last), guidance, source, compile)
    finally:
        dit.train(training)
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
