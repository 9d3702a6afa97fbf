"""Linear probing of tokens, the paper's L.P. column, by MAE's protocol (He et al., 2022).

The mean over an image's region tokens goes through a BatchNorm without affine parameters and one linear layer,
trained on the frozen features. What differs from MAE: features are computed once, from the evaluation crop, so
there is no augmentation. Small probes on one GPU or CPU; every rank that runs it gets the same result.

Shapes: N images, K tokens, C channels, Y classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.errors import EvaluationError


@dataclass(frozen=True)
class ProbeRecipe:
    """MAE's settings. The learning rate at batch b is base_lr * b / 256: a linear warm-up, then half a cosine to 0."""

    optimizer: Literal["lars", "adamw"] = "lars"
    base_lr: float | None = None  # None: 0.1 for LARS, 1e-3 for AdamW
    batch: int = 16384  # or all images, if they are fewer
    epochs: int = 90
    warmup_epochs: int = 10
    weight_decay: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class ProbeResult:
    """Shares of the validation images whose class is the first guess, or among the first five (or all, if fewer)."""

    top1: float
    top5: float
    train_images: int
    val_images: int
    recipe: ProbeRecipe


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    num_classes: int,
    recipe: ProbeRecipe | None = None,
) -> ProbeResult:
    """features (N,K,C) or already averaged (N,C), labels (N,) int64 in [0,Y); runs where the features are.

    Raises:
        EvaluationError: features and labels don't match, or a setting makes no sense.
    """
    recipe = recipe or ProbeRecipe()
    _check(recipe, num_classes, (train_features, train_labels), (val_features, val_labels))
    probe = train_probe(train_features, train_labels, num_classes, recipe)
    device, val = train_features.device, average_tokens(val_features)  # (N,C)
    with torch.no_grad():
        logits = torch.cat([probe(block.to(device)) for block in val.split(4096)])  # (N,Y)
    guesses = logits.topk(min(5, num_classes), dim=1).indices == val_labels.to(logits.device)[:, None]
    top1, top5 = (guesses[:, :n].any(dim=1).double().mean().item() for n in (1, 5))
    return ProbeResult(top1, top5, len(train_features), len(val), recipe)


def train_probe(features: Tensor, labels: Tensor, num_classes: int, recipe: ProbeRecipe) -> nn.Module:
    """The probe alone: features (N,C) float32 -> logits (N,Y). Arguments and errors of ``linear_probe``."""
    _check(recipe, num_classes, (features, labels))
    features = average_tokens(features)  # (N,C)
    probe = _build_probe(features.shape[1], num_classes, recipe.seed).to(features.device)
    _train(probe, features, labels.to(features.device), recipe)
    return probe.eval()


def average_tokens(features: Tensor) -> Tensor:
    """(N,K,C) -> (N,C) float32; (N,C) passes."""
    return features.float().mean(dim=1) if features.dim() == 3 else features.float()


def _build_probe(channels: int, num_classes: int, seed: int) -> nn.Module:
    linear = nn.Linear(channels, num_classes, device="meta").to_empty(device="cpu")  # the global generator stays
    # MAE's normal at std 0.01 is cut off at +-2, where there is nothing. Drawn on the CPU: all devices start alike.
    values = torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        linear.weight.copy_(0.01 * values)
        linear.bias.zero_()
    return nn.Sequential(nn.BatchNorm1d(channels, affine=False, eps=1e-6), linear)


def _train(probe: nn.Module, features: Tensor, labels: Tensor, recipe: ProbeRecipe) -> None:
    batch = min(recipe.batch, len(features))
    base_lr = recipe.base_lr if recipe.base_lr is not None else {"lars": 0.1, "adamw": 1e-3}[recipe.optimizer]
    optimizer = _build_optimizer(probe[1], recipe)
    probe.train()
    for epoch, chosen in _batches(len(features), batch, recipe):
        for group in optimizer.param_groups:
            group["lr"] = base_lr * batch / 256 * schedule(epoch, recipe)
        chosen = chosen.to(features.device)
        loss = F.cross_entropy(probe(features[chosen]), labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if not all(p.isfinite().all() for p in probe.parameters()):
        raise EvaluationError("the linear probe diverged: lower base_lr")


def schedule(epoch: float, recipe: ProbeRecipe) -> float:
    """The learning rate at a (fractional) epoch, as a share of its peak."""
    if epoch < recipe.warmup_epochs:
        return epoch / recipe.warmup_epochs
    return 0.5 * (1 + math.cos(math.pi * (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)))


def _build_optimizer(linear: nn.Linear, recipe: ProbeRecipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(linear.parameters(), weight_decay=recipe.weight_decay)
    from timm.optim import Lars  # seconds, which only who trains with it should wait

    # MAE's LARS adapts matrices only, decay or not; timm's adapts where there is decay, or where it is asked to.
    groups = [
        {"params": [linear.weight], "weight_decay": recipe.weight_decay, "always_adapt": True},
        {"params": [linear.bias], "weight_decay": 0.0, "always_adapt": False},
    ]
    return Lars(groups, momentum=0.9, trust_coeff=0.001)


def _batches(count: int, batch: int, recipe: ProbeRecipe) -> Iterator[tuple[float, Tensor]]:
    """The (fractional) epoch and the images of every step: each image once an epoch.

    A last batch of one joins the one before (BatchNorm).
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    for epoch in range(recipe.epochs):
        blocks = list(torch.randperm(count, generator=generator).split(batch))
        if len(blocks) > 1 and len(blocks[-1]) == 1:
            blocks[-2:] = [torch.cat(blocks[-2:])]
        yield from ((epoch + number / len(blocks), block) for number, block in enumerate(blocks))


def _check(recipe: ProbeRecipe, num_classes: int, *sets: tuple[Tensor, Tensor]) -> None:
    if recipe.optimizer not in ("lars", "adamw"):
        raise EvaluationError(f"the probe's optimizer is 'lars' or 'adamw', got '{recipe.optimizer}'")
    if not 0 <= recipe.warmup_epochs < recipe.epochs or recipe.batch < 2:
        raise EvaluationError("the probe needs epochs > warmup_epochs >= 0 and a batch of at least 2")
    for features, labels in sets:
        if features.dim() not in (2, 3) or labels.shape != features.shape[:1] or len(labels) < 2:
            raise EvaluationError(f"features {tuple(features.shape)} don't go with labels {tuple(labels.shape)}")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise EvaluationError(f"labels must lie in 0 ... {num_classes - 1}")
        if not features.isfinite().all():
            raise EvaluationError("some features are not finite")
