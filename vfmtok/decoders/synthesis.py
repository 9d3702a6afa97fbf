"""The multi-scale decoder of VFM-VAE (arXiv 2510.18457): a map of latents to images of every size, in the way of
StyleGAN. The mean of the map modulates all blocks, and the map itself enters the first of them.

Shapes: B batch, E channels of the map, s its side, D width of the style vector; block i has C channels at side r.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.config import require, require_positive
from vfmtok.layers.map_attention import MapAttention
from vfmtok.layers.modulated import ModulatedConvNeXt, ToRGB
from vfmtok.layers.precision import at_least_float32
from vfmtok.layers.upsampling import BLURS, Upsample


@dataclass(frozen=True)
class SynthesisConfig:
    """The blocks, coarse to fine, each at twice the side of the one before; the last one's is the image's."""

    widths: tuple[int, ...] = (512, 512, 512, 512, 256, 128)
    injected: tuple[int, ...] = (512, 256, 128, 128)  # channels of the latents that enter the first blocks
    kernels: tuple[int, ...] = (5, 5, 7, 7, 7, 7)  # side, of depthwise convolutions
    blurs: tuple[int, ...] = (3, 3, 3, 5, 5, 5)  # side of the blur behind a pixel shuffle, 3 or 5
    layers: tuple[int, ...] = (7, 7, 7, 7, 5, 5)  # modulated layers
    attentions: tuple[int, ...] = (2, 2, 2, 0, 0, 0)  # attention layers behind them
    heads: int = 8
    style_dim: int = 512
    noise: bool = False  # fixed noise maps: released weights have them, which bias single positions

    def __post_init__(self):
        require_positive(self, "decoder", "heads", "style_dim")
        count = len(self.widths)
        for name in ("kernels", "blurs", "layers", "attentions"):
            values = getattr(self, name)
            require(len(values) == count, f"decoder.{name}", f"must have a number for each of {count} widths", values)
        require(count > 0 and min(self.widths) >= 4, "decoder.widths", "must be numbers from 4 on", self.widths)
        grouped = all(width % min(32, width // 4) == 0 for width in self.widths)
        require(grouped, "decoder.widths", "must split into min(32, width // 4) groups", self.widths)
        fits = 0 < len(self.injected) <= count and min(self.injected) > 0
        require(fits, "decoder.injected", f"must be 1 to {count} positive numbers", self.injected)
        grouped = all(width % min(32, width) == 0 for width in self.injected)
        require(grouped, "decoder.injected", "from 32 on must be multiples of 32", self.injected)
        inputs = [self.inputs(index) for index in range(count)]
        grouped = all(width % min(32, width // 4) == 0 for width in inputs[1:])
        require(grouped, "decoder.injected", f"gives blocks inputs {inputs} that do not split into groups", None)
        odd = all(kernel > 0 and kernel % 2 for kernel in self.kernels)
        require(odd, "decoder.kernels", "must be odd", self.kernels)
        require(set(self.blurs) <= set(BLURS), "decoder.blurs", "must be 3 or 5 each", self.blurs)
        require(min(self.layers) > 0, "decoder.layers", "must be positive", self.layers)
        headed = all(n == 0 or width % self.heads == 0 for n, width in zip(self.attentions, self.widths, strict=True))
        require(headed and min(self.attentions) >= 0, "decoder.heads", "must divide the widths", self.heads)

    def inputs(self, index: int) -> int:
        """Channels that block ``index`` gets."""
        injected = self.injected[index] if index < len(self.injected) else 0
        return injected + (self.widths[index - 1] if index else 0)

    @property
    def smallest_share(self) -> int:
        """How many pixels of the image, per side, one cell of the first block's input stands for."""
        return 2 ** len(self.widths)


class StyleNetwork(nn.Module):
    """The mean of a map over its cells, normalised, through two layers with a small gain at run time, which slows their
    learning under Adam."""

    GAIN = 0.01

    def __init__(self, channels: int, style_dim: int):
        super().__init__()
        self.weight_in = nn.Parameter(torch.randn(channels, channels) / self.GAIN)
        self.bias_in = nn.Parameter(torch.zeros(channels))
        self.weight_out = nn.Parameter(torch.randn(style_dim, channels) / self.GAIN)
        self.bias_out = nn.Parameter(torch.zeros(style_dim))
        self.register_buffer("mean_style", torch.zeros(style_dim))  # stored in published files, where nothing reads it

    def forward(self, latents: Tensor) -> Tensor:
        """(B,E,s,s) -> float32 (B,D)."""
        with torch.autocast(latents.device.type, enabled=False):
            pooled = at_least_float32(latents).mean(dim=(2, 3)).to(at_least_float32(self.weight_in).dtype)  # (B,E)
            pooled = pooled * (pooled.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
            hidden = F.leaky_relu(self._linear(pooled, self.weight_in, self.bias_in), 0.2)  # (B,E)
            return self._linear(hidden, self.weight_out, self.bias_out)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight = at_least_float32(weight) * (self.GAIN / math.sqrt(weight.shape[1]))
        return F.linear(x, weight, at_least_float32(bias) * self.GAIN)


class Injection(nn.Module):
    """The latents brought to a block's side: pixel-unshuffled where it is smaller, -shuffled where it is larger."""

    def __init__(self, channels: int, outputs: int, latent_side: int, side: int):
        super().__init__()
        self.unshuffle, self.shuffle = max(1, latent_side // side), max(1, side // latent_side)
        inputs, middle = channels * self.unshuffle**2, outputs * self.shuffle**2
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, middle, 1, bias=False)
        self.norm = nn.GroupNorm(min(32, middle), middle)
        self.project = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.project_norm = nn.GroupNorm(min(32, outputs), outputs)

    def forward(self, latents: Tensor) -> Tensor:
        """(B,E,s,s) -> (B,outputs,r/2,r/2)."""
        x = F.pixel_unshuffle(latents, self.unshuffle) if self.unshuffle > 1 else latents
        x = F.leaky_relu(self.norm(self.pointwise(self.depthwise(x))), 0.2)
        if self.shuffle > 1:
            x = F.pixel_shuffle(x, self.shuffle)
        return self.project_norm(self.project(x))


class SynthesisBlock(nn.Module):
    """Doubles the map, then modulated layers and attention. Beside it runs a sum of all blocks' maps, which makes the
    image of this size; the next block gets this one's own map."""

    def __init__(self, config: SynthesisConfig, index: int, side: int):
        super().__init__()
        width, kernel, blur = config.widths[index], config.kernels[index], config.blurs[index]
        self.upsample = Upsample(config.inputs(index), width, blur, norm_first=index > 0)
        self.layers = nn.ModuleList(
            ModulatedConvNeXt(width, kernel, config.style_dim) for _ in range(config.layers[index])
        )
        self.attentions = nn.ModuleList(MapAttention(width, config.heads) for _ in range(config.attentions[index]))
        self.upsample_sum = Upsample(config.widths[index - 1], width, blur, norm_first=True) if index else None
        self.to_rgb = ToRGB(width, config.style_dim)
        self.side = side

    def forward(self, x: Tensor, total: Tensor | None, style: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,inputs,r/2,r/2), total (B,C',r/2,r/2), style (B,D) -> map and sum (B,C,r,r), image (B,3,r,r)."""
        x = self.upsample(x)  # (B,C,r,r)
        for layer in self.layers:
            x = layer(x, style)
        for attention in self.attentions:
            x = attention(x)
        total = x if self.upsample_sum is None else self.upsample_sum(total) + x
        return x, total, self.to_rgb(total, style)


class SynthesisDecoder(nn.Module):
    """A map (B,E,s,s) to images at the side of every block.

    Args:
        channels: E.
        latent_side: s, where the image has side ``image_side``; other sides scale alike.
    """

    def __init__(self, config: SynthesisConfig, channels: int, latent_side: int, image_side: int):
        super().__init__()
        count = len(config.widths)
        self.sides = tuple(image_side // 2 ** (count - 1 - index) for index in range(count))  # of the images
        self.injections = nn.ModuleList(
            Injection(channels, width, latent_side, side // 2)
            for width, side in zip(config.injected, self.sides, strict=False)
        )
        self.blocks = nn.ModuleList(SynthesisBlock(config, index, side) for index, side in enumerate(self.sides))
        if config.noise:
            self.set_noise(True)

    def set_noise(self, wanted: bool) -> None:
        """Give every modulated layer a noise map, or take it away: see ``SynthesisConfig.noise``."""
        for index, block in enumerate(self.blocks):
            for layer in block.layers:
                layer.set_noise(8 * 2**index if wanted else None)  # so in published files, whatever the block's side

    def forward(self, latents: Tensor, style: Tensor) -> list[Tensor]:
        """latents (B,E,s,s), style (B,D) -> images (B,3,r,r), nominally in [-1,1], small to large."""
        x, total, images = None, None, []
        for index, block in enumerate(self.blocks):
            if index < len(self.injections):
                injected = self.injections[index](latents)  # (B,d,r/2,r/2)
                x = injected if x is None else torch.cat([x, injected], dim=1)
            x, total, image = block(x, total, style)
            images.append(image)
        return images
