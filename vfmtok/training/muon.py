"""Muon (Jordan et al., 2024) for the hidden matrices of a model, AdamW for everything else, as one optimizer.

Muon's update of a matrix is its momentum with all singular values brought near 1 by five Newton-Schulz iterations, in
bfloat16. Its size is matched to AdamW's, 0.2 max(n,m)^0.5 (Liu et al., 2025, "Muon is scalable for LLM training"), so
that both share the learning rate, its schedule and the weight decay.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from vfmtok.errors import ConfigError
from vfmtok.layers.precision import bf16_slowdown, computes_bf16
from vfmtok.training.recipe import OptimizerConfig
from vfmtok.weights.sharded import is_sharded

STACKS = (nn.ModuleList, nn.Sequential)


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


class MuonAndAdamW(torch.optim.Optimizer):
    """``torch.optim.Muon`` of the matrices and fused AdamW of the rest: one step, one state, one list of groups.

    Under FSDP2 the iterations run on sharded matrices, gathered by PyTorch as its products need them.

    Args:
        groups: ``{"params": parameters, ...}``, where a group may have a ``weight_decay`` of its own.
        matrices: those of the parameters that Muon updates; others in it are ignored.

    Raises:
        ConfigError: this PyTorch has no Muon.
    """

    _step_supports_amp_scaling = True  # GradScaler leaves it to ``step`` to skip, as of the fused optimizers

    def __init__(self, config: OptimizerConfig, groups: list[dict], matrices: Collection[nn.Parameter]):
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(f"optimizer.name muon needs PyTorch 2.9 or newer, this is {torch.__version__}")
        chosen = set(matrices)
        by_muon, by_adamw = (
            [{**group, "params": params} for group in groups if (params := [p for p in group["params"] if test(p)])]
            for test in (chosen.__contains__, lambda parameter: parameter not in chosen)
        )
        by_muon = [{**group, "lr_factor": config.muon_lr_factor} for group in by_muon]
        rates = {"lr": config.lr, "weight_decay": config.weight_decay}
        self.parts: list[torch.optim.Optimizer] = []
        if by_muon:
            self.parts.append(
                torch.optim.Muon(by_muon, momentum=config.muon_momentum, adjust_lr_fn="match_rms_adamw", **rates)
            )
        if by_adamw:
            self.parts.append(torch.optim.AdamW(by_adamw, betas=tuple(config.betas), fused=True, **rates))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            part.state = self.state  # both keep what they know of their parameters in one place
        self.matrices = [parameter for group in by_muon for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update, unless the scalar ``found_inf`` that GradScaler or ``Stepper`` put on this object is not 0.

        Nothing waits for the device: where a step is not taken, Muon works on its own momentum, which that leaves as
        it is, and the matrices are put back.
        """
        refused = getattr(self, "found_inf", None)
        before = [] if refused is None else self._hold(refused.bool())
        for part in self.parts:
            part.grad_scale, part.found_inf = None, refused  # for AdamW's fused kernel; Muon does not look
            part.step()
            del part.grad_scale, part.found_inf
        if refused is not None:
            for parameter, value in zip(self.matrices, before, strict=True):
                own = _own(parameter)
                own.copy_(torch.where(refused.bool(), value, own))

    def _hold(self, refused: Tensor) -> list[Tensor]:
        """Copies of the matrices. Where the step is refused, momentum takes the place of the gradients."""
        for parameter in self.matrices:
            if parameter.grad is not None:
                momentum = self.state.get(parameter, {}).get("momentum_buffer")
                gradient = _own(parameter.grad)
                unmoved = torch.zeros_like(gradient) if momentum is None else _own(momentum)
                gradient.copy_(torch.where(refused, unmoved, gradient))
        return [_own(parameter).clone() for parameter in self.matrices]

    def describe(self, device: torch.device) -> list[str]:
        """Lines for people. Raises ConfigError where Muon has nothing to update."""
        if not self.matrices:
            raise ConfigError("optimizer.name muon: no linear layer in a stack of layers learns here: use adamw")
        learned = sum(parameter.numel() for group in self.param_groups for parameter in group["params"])
        share = sum(parameter.numel() for parameter in self.matrices) / learned
        lines = [f"muon for {len(self.matrices)} matrices, {share:.0%} of what learns; adamw for the rest"]
        if not computes_bf16(device):
            lines.append(
                f"optimizer.name muon multiplies in bfloat16, which this {device.type} emulates: a product takes "
                f"{bf16_slowdown(device):.1f} times as long as in float32"
            )
        return lines


def _own(tensor: Tensor) -> Tensor:
    """This process's slice, or all of a tensor that is not sharded; both share the memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor.detach()
