"""Adversarial terms: what the discriminator and the generator minimise, and two ways to keep them in balance.

Logits come in any shape, larger meaning more real; a discriminator of several scales gives a list of them, of which
losses are the mean. Every loss is a float32 scalar, not yet weighted.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.distributed import sum_over_ranks
from vfmtok.errors import ConfigError
from vfmtok.layers.precision import at_least_float32

Logits = Tensor | Sequence[Tensor]


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def _least_squares(real: Tensor, fake: Tensor) -> Tensor:
    return (real - 1).square().mean() + fake.square().mean()


# Systems differ in whether they take the mean of both sides or their sum, which matters beside a weight or a bound.
# The discriminator's side of the non-saturating game is the plain ("vanilla") cross entropy: the
# published code's variant takes the sigmoid twice, which is not offered.
DISCRIMINATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": _hinge,
    "vanilla": _cross_entropy,
    "non-saturating": _cross_entropy,
    "hinge-sum": lambda real, fake: 2 * _hinge(real, fake),
    "vanilla-sum": lambda real, fake: 2 * _cross_entropy(real, fake),
    "least-squares": _least_squares,
}
GENERATOR_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": lambda fake: -fake.mean(),
    "non-saturating": lambda fake: F.softplus(-fake).mean(),
    "softplus": lambda fake: F.softplus(-fake).mean(),  # the same under its other name
    "least-squares": lambda fake: (fake - 1).square().mean(),
}


def discriminator_loss(real_logits: Logits, fake_logits: Logits, kind: str) -> Tensor:
    """What the discriminator minimises.

    hinge: (mean relu(1 - real) + mean relu(1 + fake)) / 2;
    vanilla, non-saturating: (mean softplus(-real) + mean softplus(fake)) / 2;
    hinge-sum, vanilla-sum: the same without the half;
    least-squares: mean (real - 1)^2 + mean fake^2.

    Raises:
        ConfigError: ``kind`` is none of these.
    """
    loss = _choose(DISCRIMINATOR_LOSSES, kind, "discriminator")
    pairs = zip(_scales(real_logits), _scales(fake_logits), strict=True)
    return _mean([loss(at_least_float32(real), at_least_float32(fake)) for real, fake in pairs])


def generator_loss(fake_logits: Logits, kind: str) -> Tensor:
    """What the generator minimises.

    hinge: -mean fake; non-saturating, softplus: mean softplus(-fake); least-squares: mean (fake - 1)^2.

    Raises:
        ConfigError: ``kind`` is none of these.
    """
    loss = _choose(GENERATOR_LOSSES, kind, "generator")
    return _mean([loss(at_least_float32(fake)) for fake in _scales(fake_logits)])


def feature_matching_loss(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Hidden maps of a discriminator, of every scale and layer; no gradient to the real ones (pix2pixHD).

    The sum over layers of the mean absolute difference, the mean over scales: a float32 scalar.
    """
    return _mean(
        [
            torch.stack(
                [
                    F.l1_loss(at_least_float32(ours), at_least_float32(theirs.detach()))
                    for ours, theirs in zip(fake_maps, real_maps, strict=True)
                ]
            ).sum()
            for fake_maps, real_maps in zip(fake, real, strict=True)
        ]
    )


def _scales(logits: Logits) -> Sequence[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits


def _as_one(logits: Logits) -> Tensor:
    return logits if isinstance(logits, Tensor) else torch.cat([part.flatten() for part in logits])


def _mean(losses: list[Tensor]) -> Tensor:
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def _choose(losses: dict[str, Callable], kind: str, side: str) -> Callable:
    if kind not in losses:
        raise ConfigError(f"the {side}'s loss must be one of {', '.join(losses)}, got '{kind}'")
    return losses[kind]


class LeCam(nn.Module):
    """LeCam regularisation (Tseng et al., 2021) against a discriminator that wins outright.

    mean relu(real - anchor_fake)^2 + mean relu(anchor_real - fake)^2, the anchors being moving
    averages of the mean logits: real images may not score far above what fakes used to, nor fakes
    far below what real images used to.

    ``forward`` reads the anchors and notes the logits; ``step``, once per optimizer step, moves the
    anchors by the mean of all logits noted since, over micro-batches and ranks. So the anchors
    depend on the global batch alone. Until the first step there are none and the term is zero.
    """

    def __init__(self, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("anchors", torch.zeros(2))  # real, fake
        self.register_buffer("started", torch.zeros(()))  # 1 once there are anchors
        self.register_buffer("noted", torch.zeros(4), persistent=False)  # sums of real, fake; their counts

    def forward(self, real_logits: Logits, fake_logits: Logits) -> Tensor:
        """The discriminator's logits on real and fake images -> float32 scalar, to be weighted."""
        real, fake = (at_least_float32(_as_one(logits)) for logits in (real_logits, fake_logits))
        with torch.no_grad():
            for index, (logits, total) in enumerate(((real, real.sum()), (fake, fake.sum()))):
                self.noted[index] += total
                self.noted[index + 2] += logits.numel()
        anchor_real, anchor_fake = self.anchors.clone()  # step() overwrites them, perhaps before backward
        term = F.relu(real - anchor_fake).square().mean() + F.relu(anchor_real - fake).square().mean()
        return term * self.started.clone()

    @torch.no_grad()
    def step(self) -> None:
        """Move the anchors. All ranks must call it together; logits that are not finite change nothing."""
        sums, counts = sum_over_ranks(self.noted).chunk(2)
        means = sums / counts
        usable = means.isfinite().all()
        moved = torch.where(self.started > 0, self.anchors.lerp(means, 1 - self.decay), means)
        self.anchors.copy_(torch.where(usable, moved, self.anchors))
        self.started.copy_(torch.where(usable, 1.0, self.started))
        self.noted.zero_()


def adaptive_weight(
    reconstruction_loss: Tensor,
    other_loss: Tensor,
    weight: Tensor,
    loss_scale: float = 1.0,
    largest: float = 1e4,
) -> Tensor:
    """VQGAN's weight of another loss (Esser et al., 2021): |d reconstruction| / (|d other| + 1e-4).

    Both gradients are those of one weight of the model, averaged over ranks; all ranks must call it together: of the
    generator loss that of the decoder's last layer, of the alignment loss that of the layer that makes the latents.
    Under gradient accumulation the ratio is that of a micro-batch, not of the global batch.
    Returns a scalar in [0,largest], detached; the graph of both losses stays. Give unscaled losses; under fp16 with a
    ``loss_scale`` that keeps their small gradients from vanishing on the way, which they are divided by again.
    """
    gradients = torch.stack(
        [
            at_least_float32(torch.autograd.grad(loss * loss_scale, weight, retain_graph=True)[0]).flatten()
            for loss in (reconstruction_loss, other_loss)
        ]
    ).div(loss_scale)  # (2,P)
    total = sum_over_ranks(torch.cat([gradients.flatten(), gradients.new_ones(1)]))  # the last counts the ranks
    reconstruction, other = (total[:-1] / total[-1]).view(2, -1).norm(dim=1)
    return (reconstruction / (other + 1e-4)).clamp(0, largest).detach()
