"""Guided velocities: classifier-free guidance and autoguidance, where and how strongly.

Shapes: B batch, C channels, S side of a latent, Z width of the class token.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vfmtok.config import require
from vfmtok.generators.diffusion.network import Network
from vfmtok.layers.precision import at_least_float32


@dataclass(frozen=True)
class FlowGuidance:
    """v = u + scale * (c - u): c with the label, u without one (Ho and Salimans, 2022), where low <= t <= high.

    Elsewhere, and everywhere at scale 1, it is c, and u is not computed.

    Attributes:
        channels: guide only the first so many; the others get c. None: all. (Published LightningDiT: 3.)
        token_scale: of the class token; None: ``scale``; 0 or less: the token's own c.
        weaker: a smaller or earlier model, which computes u, with the label (autoguidance, arXiv 2406.02507).
    """

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0
    channels: int | None = None
    token_scale: float | None = None
    weaker: Network | None = None

    def __post_init__(self):
        require(0 <= self.scale < math.inf, "guidance scale", "must be a number from 0", self.scale)
        for name in ("low", "high"):
            require(0 <= getattr(self, name) <= 1, f"guidance {name}", "must be in [0,1]", getattr(self, name))
        require(self.low <= self.high, "guidance low", f"must be at most high = {self.high}", self.low)
        channels, token_scale = self.channels, self.token_scale
        require(channels is None or channels > 0, "guidance channels", "must be positive (None: all)", channels)
        finite = token_scale is None or math.isfinite(token_scale)
        require(finite, "guidance token_scale", "must be a number", token_scale)

    def is_on(self, t: float) -> bool:
        return self.scale != 1 and self.low <= t <= self.high

    def fitting(self, dit: Network) -> "FlowGuidance":
        """This one. Raises ConfigError if ``weaker`` makes other latents, class tokens or classes than ``dit``."""
        if self.weaker is not None:
            for name in ("code", "num_classes"):
                own, other = getattr(dit, name), getattr(self.weaker, name)
                require(own == other, f"the {name} of the model that guides", f"must be {own}", other)
            own, other = dit.config.token_dim, self.weaker.config.token_dim
            require(own == other, "token_dim of the model that guides", f"must be {own}", other)
        return self


@torch.no_grad()
def guided_velocity(
    dit: Network,
    x: Tensor,
    t: float,
    labels: Tensor,
    guidance: FlowGuidance,
    token: Tensor | None = None,
    forward: Callable | None = None,
) -> tuple[Tensor, Tensor | None]:
    """x (B,C,S,S) at noise level t, labels (B,), with a class token (B,Z) -> velocities (B,C,S,S) and (B,Z) or None.

    The network computes in its own dtype; what goes in and comes out has that of x. ``forward(dit, ...)`` is called in
    the place of ``dit(...)``.
    """
    if not guidance.is_on(t):
        return _velocities(dit, x, t, labels, token, forward)
    if guidance.weaker is not None:
        c, c_token = _velocities(dit, x, t, labels, token, forward)
        u, u_token = _velocities(guidance.weaker, x, t, labels, token, forward)
    else:
        both = torch.cat([labels, torch.full_like(labels, dit.null_class)])  # (2B,)
        v, v_token = _velocities(dit, _doubled(x), t, both, _doubled(token), forward)
        (c, u), (c_token, u_token) = v.chunk(2), (None, None) if token is None else v_token.chunk(2)
    channels = x.shape[1] if guidance.channels is None else guidance.channels
    guided = u[:, :channels] + guidance.scale * (c[:, :channels] - u[:, :channels])  # (B,channels,S,S)
    if token is not None:
        scale = guidance.scale if guidance.token_scale is None else guidance.token_scale
        c_token = u_token + scale * (c_token - u_token) if scale > 0 else c_token  # (B,Z)
    return torch.cat([guided, c[:, channels:]], dim=1), c_token


def _velocities(
    dit: Network, x: Tensor, t: float, labels: Tensor, token: Tensor | None, forward: Callable | None
) -> tuple[Tensor, Tensor | None]:
    dtype = at_least_float32(torch.empty(0, dtype=dit.patches.weight.dtype)).dtype
    times = torch.full((len(x),), t, dtype=dtype, device=x.device)  # (B,)
    given = x.to(dtype), times, labels, None if token is None else token.to(dtype)
    out = dit(*given) if forward is None else forward(dit, *given)
    return out.velocity.to(x.dtype), None if token is None else out.token_velocity.to(x.dtype)


def _doubled(tensor: Any) -> Any:
    return None if tensor is None else torch.cat([tensor, tensor])
