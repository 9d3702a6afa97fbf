"""A network that training uses but neither trains nor saves."""

from typing import Any

from torch import nn


class Frozen(nn.Module):
    """Holds a pretrained network apart from the model that contains it.

    The network is in eval mode for good and takes no gradient, though gradients flow through it to
    its input. It follows ``to()`` and the like, but is not among the parameters, buffers or state
    dict of the model: what is saved are the weights that were trained, and DDP sees no others.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self._held = [network.eval().requires_grad_(False)]  # in a list, to stay out of the module tree

    @property
    def network(self) -> nn.Module:
        return self._held[0]

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.network(*arguments, **options)

    def _apply(self, fn, recurse: bool = True) -> "Frozen":  # what to(), cuda(), float() ... go through
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)
