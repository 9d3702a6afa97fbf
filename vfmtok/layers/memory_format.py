"""The memory format of maps that convolutions compute on: NHWC ("channels last"), or NCHW where that learns faster.

On CPUs the forward pass and the gradient of the map are up to twice as fast with the channels last. The gradient of a
3x3 weight is not everywhere: on CPUs with AVX2 alone PyTorch's kernel for it runs at a half to a quarter of the speed
that it has in NCHW (128 channels, 84 and 168 px), on ones with AVX-512 a little faster than there. Both formats give
the same results up to rounding.

Shapes: B batch, C channels, h and w sides of a map.
"""

import torch
from torch import Tensor, nn

LARGE_IMAGE = 128  # px; on the maps of smaller images the formats differ little


class Convolutional(nn.Module):
    """A network of convolutions that lays its input out itself."""

    training_format = torch.channels_last  # in training mode; eval mode has no gradients of weights

    def laid_out(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> the same, copied: a batch of 1 can look contiguous to ``contiguous`` and not to convolutions."""
        return x.clone(memory_format=self.training_format if self.training else torch.channels_last)


def weights_learn_faster_in_nchw() -> bool:
    """Whether this CPU is one whose 3x3 weight gradients are slow with the channels last. A fact of the machine and not
    a measurement: a run that continues must round as it did."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"
