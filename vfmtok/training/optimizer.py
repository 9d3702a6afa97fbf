"""Optimizers, gradient clipping, and steps that leave the weights alone when a gradient is not finite.

Nothing here waits for the device: whether a step is taken is decided there.
"""

import functools
import math
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from vfmtok.training.muon import MuonAndAdamW
from vfmtok.training.recipe import OptimizerConfig
from vfmtok.training.sharding import whole
from vfmtok.weights.saved import Part


def build_optimizer(
    config: OptimizerConfig, groups: Iterable[nn.Parameter] | list[dict], matrices: Collection[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimizer of this name over parameters or parameter groups, fused into one kernel per group.

    Args:
        matrices: those of the parameters that "muon" updates as matrices (``muon.hidden_matrices``).
    """
    groups = list(groups)
    if groups and not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    return OPTIMIZERS[config.name](config, groups, matrices)


def _adam(kind: type[torch.optim.Optimizer], config: OptimizerConfig, groups: list[dict], _: Collection[nn.Parameter]):
    return kind(groups, lr=config.lr, betas=tuple(config.betas), weight_decay=config.weight_decay, fused=True)


OPTIMIZERS = {
    "adamw": functools.partial(_adam, torch.optim.AdamW),
    "adam": functools.partial(_adam, torch.optim.Adam),
    "muon": MuonAndAdamW,
}


def learning_rate(config: OptimizerConfig, step: int, warmup_steps: int, total_steps: int) -> float:
    """The rate of step 0, 1, ...: linear from ``warmup_lr`` to ``lr``, then constant, half a cosine, or
    constant up to a share of the run and a line after it."""
    if step < warmup_steps:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup_steps
    if config.decay == "constant":
        return config.lr
    if config.decay == "linear":
        begin = max(warmup_steps, config.decay_from * total_steps)
        share = min(1.0, max(0.0, (step - begin) / max(1, total_steps - begin)))
        return config.lr + (config.final_lr - config.lr) * share
    share = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share))


FIRST_SCALE = 2.0**10  # of fp16's losses: from PyTorch's 2^16 ten steps in a row could be skipped on the way down


class Stepper:
    """An optimizer with its learning rate, clipping and (for fp16) loss scaling.

    Args:
        parameters: what the optimizer updates, all of it.
        scaled: scale the loss, as fp16 needs.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter],
        max_grad_norm: float,
        scaled: bool = False,
    ):
        self.optimizer = optimizer
        self.parameters = list(parameters)
        self.max_grad_norm = max_grad_norm or math.inf
        self.scaler = torch.amp.GradScaler(self.parameters[0].device.type, init_scale=FIRST_SCALE, enabled=scaled)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, lr: float, accepted: Tensor | None = None) -> Tensor:
        """Clip and update, unless the gradient's norm is not finite.

        Args:
            accepted: a bool scalar on the device, where something else decides besides: False makes the gradient, and
                its norm, not finite.

        Returns:
            the norm before clipping, a float32 scalar on the device.
        """
        if accepted is not None:
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, torch.where(accepted, 1.0, math.nan))
        self.scaler.unscale_(self.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            # The fused kernels skip the update where this is 1: GradScaler's own means, without its scale.
            self.optimizer.grad_scale, self.optimizer.found_inf = None, 1 - norm.isfinite().float()
            self.optimizer.step()
            del self.optimizer.grad_scale, self.optimizer.found_inf
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict:
        """The scaler's numbers; moments are saved by parameter name (``moments``)."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        if self.scaler.is_enabled() and state:
            self.scaler.load_state_dict(state)


ADAM, MUON = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)  # what they keep of a parameter


def moments(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, Tensor]:
    """The optimizer's tensors as "exp_avg/<parameter name>" and so on."""
    return {
        f"{kind}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    }


def load_moments(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str], saved: Part) -> int:
    """The inverse of ``moments``; parameters that had not been updated yet start without.

    Returns:
        how many saved tensors were left out, since this optimizer keeps others of their parameters.
    """
    by_name, tensors, left_out = {name: parameter for parameter, name in names.items()}, {}, 0
    kept = {p: MUON if "momentum" in group else ADAM for group in optimizer.param_groups for p in group["params"]}
    optimizer.state.clear()
    for key, shape in saved.shapes().items():
        kind, _, name = key.partition("/")
        parameter = by_name[name]
        if kind not in kept.get(parameter, (kind,)):
            left_out += 1
            continue
        # A moment is sharded as its parameter is; counts of steps are whole in every process.
        whole = tuple(parameter.shape) != shape
        value = torch.zeros(shape, device=parameter.device) if whole else torch.zeros_like(parameter.detach())
        optimizer.state[parameter][kind] = tensors[key] = value
    saved.read_into(tensors)
    return left_out
