"""Muon (Jordan et al., 2024) for the hidden matrices of a model, AdamW for everything else, as one optimizer.

Muon's update of a matrix is its momentum with all singular values brought near 1 by five Newton-Schulz iterations, in
bfloat16, or in float32 on a CPU that only emulates it. (``torch.optim.Muon`` has the same equations, but always in
bfloat16, which such a CPU computes up to a hundred times slower.) Its size is matched to AdamW's, 0.2 max(n,m)^0.5 (Liu
et al., 2025, "Muon is scalable for LLM training"), so that both share the learning rate, its schedule and the
weight decay.
"""

import functools
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from vfmtok.errors import ConfigError
from vfmtok.layers.precision import computes_bf16
from vfmtok.training.recipe import OptimizerConfig
from vfmtok.weights.sharded import is_sharded

STACKS = (nn.ModuleList, nn.Sequential)
ITERATIONS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # a s + b s^3 + c s^5 of a singular value s, by Jordan et al.


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights (n,m) of linear layers inside the layers of a stack: attention, feed-forward networks, modulations.

    A stack is an ``nn.ModuleList`` or ``nn.Sequential``; a layer is an item of it that is neither a linear layer nor a
    stack itself. So what lies outside (projections of the input, embeddings, output heads) is none, and neither are
    convolutions, biases, norms, position tables and codebooks, wherever they are. A fused weight, as of query, key and
    value, is one matrix.
    """
    layers = {
        item
        for stack in model.modules()
        if isinstance(stack, STACKS)
        for item in stack.children()
        if not isinstance(item, (nn.Linear, *STACKS))
    }
    inside = {module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)}
    return [module.weight for module in model.modules() if module in inside]  # in the model's order


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal, of matrices (n,m).

    Nothing waits for the device: where the scalar ``found_inf`` that GradScaler or ``Stepper`` put on this object is
    not 0, matrices and momenta are multiplied by 1 and moved by 0. Gradients are used up. Under FSDP2 the iterations
    run on sharded matrices, gathered by PyTorch as its products need them.
    """

    def __init__(self, groups: Iterable[dict], lr: float, weight_decay: float, momentum: float):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        refused = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, refused)

    def _update(self, parameter: nn.Parameter, group: dict, refused: Tensor | None) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        own, gradient, momentum = (_own(x) for x in (parameter, parameter.grad, state["momentum_buffer"]))
        taken = 1.0
        if refused is not None:
            taken = 1 - refused.to(own.dtype)  # 0 or 1
            gradient.copy_(torch.where(refused.bool(), momentum, gradient))  # which leaves the momentum as it is
        momentum.lerp_(gradient, 1 - group["momentum"])
        gradient.lerp_(momentum, group["momentum"])  # Nesterov's look ahead
        update = orthogonalised(parameter.grad, _working_dtype(parameter.device))
        if is_sharded(update):
            update = update.redistribute(placements=parameter.placements)
        size = 0.2 * max(parameter.shape) ** 0.5
        own.mul_(1 - group["lr"] * group["weight_decay"] * taken)
        own.sub_(_own(update).to(own.dtype) * (group["lr"] * size * taken))


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix (n,m) with its singular values moved near 1, between about 0.7 and 1.2; those of zero stay."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)  # the squares below are of its shorter side
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


@functools.cache
def _working_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type != "cpu" or computes_bf16(device) else torch.float32


class MuonAndAdamW(torch.optim.Optimizer):
    """``Muon`` of the matrices and fused AdamW of the rest: one step, one state, one list of groups.

    Args:
        groups: ``{"params": parameters, ...}``, where a group may have a ``weight_decay`` of its own.
        matrices: those of the parameters that Muon updates; others in it are ignored.
    """

    _step_supports_amp_scaling = True  # GradScaler leaves it to ``step`` to skip, as of the fused optimizers

    def __init__(self, config: OptimizerConfig, groups: list[dict], matrices: Collection[nn.Parameter]):
        chosen = set(matrices)
        by_muon, by_adamw = (
            [{**group, "params": params} for group in groups if (params := [p for p in group["params"] if test(p)])]
            for test in (chosen.__contains__, lambda parameter: parameter not in chosen)
        )
        by_muon = [{**group, "lr_factor": config.muon_lr_factor} for group in by_muon]
        rates = {"lr": config.lr, "weight_decay": config.weight_decay}
        self.parts: list[torch.optim.Optimizer] = []
        if by_muon:
            self.parts.append(Muon(by_muon, momentum=config.muon_momentum, **rates))
        if by_adamw:
            self.parts.append(torch.optim.AdamW(by_adamw, betas=tuple(config.betas), fused=True, **rates))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            part.state = self.state  # both keep what they know of their parameters in one place
        self.matrices = [parameter for group in by_muon for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update, unless the scalar ``found_inf`` that GradScaler or ``Stepper`` put on this object is not 0."""
        for part in self.parts:
            part.grad_scale, part.found_inf = None, getattr(self, "found_inf", None)
            part.step()
            del part.grad_scale, part.found_inf

    def describe(self, device: torch.device) -> list[str]:
        """Lines for people. Raises ConfigError where Muon has nothing to update."""
        if not self.matrices:
            raise ConfigError("optimizer.name muon: no linear layer in a stack of layers learns here: use adamw")
        learned = sum(parameter.numel() for group in self.param_groups for parameter in group["params"])
        share = sum(parameter.numel() for parameter in self.matrices) / learned
        precision = "bfloat16" if _working_dtype(device) == torch.bfloat16 else "float32"
        return [
            f"muon for {len(self.matrices)} matrices, {share:.0%} of what learns, in {precision}; adamw for the rest"
        ]


def _own(tensor: Tensor) -> Tensor:
    """This process's slice, or all of a tensor that is not sharded; both share the memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor.detach()
