"""Networks of convolutions in either memory format: the same results."""

import pytest
import torch

from vfmtok.decoders.vqgan import PixelDecoder, PixelDecoderConfig
from vfmtok.encoders.cnn import CNNEncoder, CNNEncoderConfig


@pytest.mark.parametrize(
    "network, shape",
    [
        (PixelDecoder(PixelDecoderConfig(32, (2, 1), 1), 16), (2, 16, 4, 4)),
        (CNNEncoder(CNNEncoderConfig(channels=32, multipliers=(1, 2), res_blocks=1), 16), (2, 3, 8, 8)),
    ],
)
def test_both_formats_agree(network, shape):
    """Outputs and gradients, to rounding. 3x3 convolutions see the chosen format in training mode, channels last in
    eval mode."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    seen = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = []
    for chosen in (torch.channels_last, torch.contiguous_format):
        network.training_format = chosen
        for training in (True, False):
            seen.clear()
            network.train(training).zero_grad()
            out = network(x)
            out.square().sum().backward()
            expected = chosen if training else torch.channels_last
            assert seen and all(part.is_contiguous(memory_format=expected) for part in seen)
            found.append([out.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    rounding = 1e-7 * max(a.norm() for a in found[0])  # all that the gradient of a key's bias is
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            assert (a - b).norm() <= 1e-5 * a.norm() + rounding
