"""Float32 islands: what low precision would spoil is computed in float32, under autocast too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(tensor: Tensor) -> Tensor:
    """bfloat16 and float16 become float32; float32 and float64 stay as they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def linear_in_float32(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)`` in float32 (float64 if the layer is), whatever the dtypes of the layer, x and autocast."""
    weight = at_least_float32(layer.weight)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(weight.dtype), weight, layer.bias.to(weight.dtype))
