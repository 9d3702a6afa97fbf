"""Velocity flow matching on the straight path between data and noise: times, path, losses.

Noise level t: 0 is data, 1 noise. x_t = (1 - t) z + t e, velocity v = e - z.

Shapes: B batch, C channels, S side of a latent, T tokens, Z width of the class token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok.config import require
from vfmtok.generators.diffusion.config import DiTConfig
from vfmtok.generators.diffusion.network import Network
from vfmtok.layers.precision import at_least_float32


def shift_times(t: Tensor, a: float) -> Tensor:
    """a t / (1 + (a - 1) t): a > 1 moves noise levels towards noise. The ends stay."""
    return a * t / (1 + (a - 1) * t)


def training_times(uniform: Tensor, config: DiTConfig, step: int = 0) -> Tensor:
    """Uniform numbers in [0,1) -> noise levels as ``config`` distributes them at a training step; as ``uniform``."""
    end = config.times_end
    late = config.uniform_from_step is not None and step >= config.uniform_from_step
    if config.times == "uniform" or late:
        t = end * uniform
    else:  # sigmoid of a standard normal, cut off at ``end``
        share = 1.0 if end == 1 else float(torch.special.ndtr(torch.logit(torch.tensor(end, dtype=torch.float64))))
        t = torch.special.ndtri(uniform * share).sigmoid()
    return shift_times(t, config.time_shift)


def path(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t of data and noise (B,...) at t (B,)."""
    t = t.view(-1, *(1,) * (data.ndim - 1))
    return (1 - t) * data + t * noise


def velocity_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of every sample: (B,...) twice -> (B,)."""
    return (velocity - target).square().flatten(1).mean(1)


def direction_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """1 - cosine similarity over the channels, mean over places: (B,C,S,S) twice -> (B,)."""
    return (1 - F.cosine_similarity(velocity, target, dim=1, eps=1e-8)).flatten(1).mean(1)


def alignment_loss(predicted: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """- cosine similarity of features, mean over tokens and encoders: (B,T,dim) each -> (B,)."""
    losses = []
    for features, target in zip(predicted, targets, strict=True):
        a, b = F.normalize(features, dim=-1, eps=1e-12), F.normalize(at_least_float32(target), dim=-1, eps=1e-12)
        losses.append(-(a * b).sum(-1).mean(1))  # (B,)
    return torch.stack(losses).mean(0)


@dataclass
class FlowLoss:
    """Per sample, (B,) float32 each; a term that the model or the call has none of is None.

    Attributes:
        mse: of the velocity. cosine: its direction. token: mse of the class token's. align: see ``alignment_loss``.
        weights: of the terms in ``total``.
    """

    mse: Tensor
    cosine: Tensor | None = None
    token: Tensor | None = None
    align: Tensor | None = None
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def terms(self) -> dict[str, Tensor]:
        """Weighted, by name: what ``total`` sums."""
        found = {name: getattr(self, name) for name in ("mse", "cosine", "token", "align")}
        return {name: self.weights.get(name, 1.0) * value for name, value in found.items() if value is not None}

    @property
    def total(self) -> Tensor:
        return sum(self.terms.values())


def flow_loss(
    dit: Network,
    latents: Tensor,
    labels: Tensor,
    t: Tensor,
    noise: Tensor,
    token: Tensor | None = None,
    token_noise: Tensor | None = None,
    targets: Tensor | Sequence[Tensor] | None = None,
) -> FlowLoss:
    """The loss of normalised latents (B,C,S,S) of the classes ``labels`` (B,) at noise levels t (B,).

    Which terms there are, and their weights in ``total``, is the configuration's.

    Args:
        noise: (B,C,S,S), standard normal.
        token, token_noise: (B,Z), of a model with a class token, which takes the same t.
        targets: an encoder's features (B,T,dim), class token first where the model has one, or a list of them by
            encoder; without them there is no alignment term.

    Raises:
        ConfigError: the model has no class token or no alignment, and one is given; or it has a token, and none is.
    """
    features = [targets] if isinstance(targets, Tensor) else targets
    _check_given(dit, latents, token, token_noise, features)
    latents, noise, t = (at_least_float32(tensor) for tensor in (latents, noise, t))
    noisy_token = None
    if token is not None:
        token, token_noise = at_least_float32(token), at_least_float32(token_noise)
        noisy_token = path(token, token_noise, t)  # (B,Z)
    out = dit(path(latents, noise, t), t, labels, noisy_token, align=targets is not None)
    config, target = dit.config, noise - latents  # (B,C,S,S)
    weights = {"cosine": config.cosine_weight, "token": config.token_weight, "align": config.align_weight}
    loss = FlowLoss(velocity_loss(out.velocity, target), weights=weights)
    if config.cosine_weight:
        loss.cosine = direction_loss(out.velocity, target)
    if token is not None:
        loss.token = velocity_loss(out.token_velocity, token_noise - token)
    if targets is not None:
        loss.align = alignment_loss(out.alignment, features)
    return loss


def _check_given(
    dit: Network,
    latents: Tensor,
    token: Tensor | None,
    token_noise: Tensor | None,
    features: Sequence[Tensor] | None,
) -> None:
    """Raise ConfigError for what ``flow_loss`` can't use."""
    width = dit.config.token_dim
    expected = None if width is None else (len(latents), width)
    for name, given in (("token", token), ("token_noise", token_noise)):
        found = None if given is None else tuple(given.shape)
        rule = "is of models with a class token" if width is None else f"must be {expected}, the class token's"
        require(found == expected, name, rule, found)
    widths = None if features is None else tuple(target.shape[-1] for target in features)
    fits = widths is None or (widths == tuple(dit.config.align_dims) and len(widths) > 0)
    require(fits, "targets", f"must be features of the widths {tuple(dit.config.align_dims)}", widths)
