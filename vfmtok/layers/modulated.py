"""Convolutions modulated by a style vector, and the ConvNeXt layer made of them (StyleGAN2, Karras et al., 2020; T. Liu
et al., 2022).

Shapes: B batch, C channels, h and w sides of a map, D width of the style vector.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.layers.precision import at_least_float32


class ToScales(nn.Module):
    """A style vector to a factor for every channel: m1 * m2 + m3, the thirds of one linear layer."""

    def __init__(self, style_dim: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * channels, style_dim))
        self.bias = nn.Parameter(torch.ones(3 * channels))

    def forward(self, style: Tensor) -> Tensor:
        """style (B,D) -> float32 (B,C)."""
        weight = at_least_float32(self.weight)
        with torch.autocast(style.device.type, enabled=False):
            thirds = F.linear(style.to(weight.dtype), weight / math.sqrt(weight.shape[1]), self.bias.to(weight.dtype))
            m1, m2, m3 = thirds.chunk(3, dim=1)  # 3 x (B,C)
            return m1 * m2 + m3


class ModulatedPointwise(nn.Module):
    """A 1x1 convolution whose weights are multiplied by the scales of their input channels and then normalised for
    every output channel. Computed without a kernel for each sample: the scales act on the input, the norms on the
    output."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, outputs, 1, 1))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, scales: Tensor) -> Tensor:
        """x (B,C,h,w), scales (B,C) -> (B,outputs,h,w)."""
        weight = at_least_float32(self.weight)
        with torch.autocast(x.device.type, enabled=False):
            squares = scales.square() @ weight.flatten(1).square().t()  # (B,outputs)
            factors = (squares + 1e-8).rsqrt()
        y = F.conv2d(x * scales[:, :, None, None].to(x.dtype), self.weight)  # (B,outputs,h,w)
        return y * factors[:, :, None, None].to(y.dtype) + self.bias.to(y.dtype)


class ToRGB(nn.Module):
    """A modulated 1x1 convolution to colours, its weights not normalised."""

    def __init__(self, channels: int, style_dim: int):
        super().__init__()
        self.scales = ToScales(style_dim, channels)
        self.weight = nn.Parameter(0.1 * torch.randn(3, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x (B,C,h,w), style (B,D) -> (B,3,h,w)."""
        scales = self.scales(style) / math.sqrt(x.shape[1])  # (B,C)
        y = F.conv2d(x * scales[:, :, None, None].to(x.dtype), self.weight)
        return y + self.bias.to(y.dtype)


class ModulatedConvNeXt(nn.Module):
    """x + gamma * h: h is depthwise convolution, norm, modulated widening by 4, GELU and narrowing.

    Attributes:
        noise: None, or a fixed (side,side) pattern that is added after the depthwise convolution times a learned
            strength. Only released weights have it; it is resized to the map.
    """

    def __init__(self, channels: int, kernel: int, style_dim: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.GroupNorm(min(32, channels // 4), channels)
        self.scales = ToScales(style_dim, channels)
        self.widen = ModulatedPointwise(channels, 4 * channels)
        self.narrow = nn.Conv2d(4 * channels, channels, 1)
        self.gamma = nn.Parameter(torch.full((1, channels, 1, 1), 1e-5))
        self.register_buffer("noise", None)
        self.register_parameter("noise_strength", None)
        for convolution in (self.depthwise, self.narrow):
            nn.init.trunc_normal_(convolution.weight, std=0.02)
            nn.init.zeros_(convolution.bias)

    def set_noise(self, side: int | None) -> None:
        """Give it a noise pattern of this side, of strength 0, or none."""
        device = self.gamma.device
        self.noise = None if side is None else torch.randn(side, side, device=device)
        self.noise_strength = None if side is None else nn.Parameter(torch.zeros((), device=device))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x (B,C,h,w), style (B,D) -> (B,C,h,w)."""
        h = self.depthwise(x)  # (B,C,h,w)
        if self.noise is not None:
            h = h + self._noise_like(h)
        h = self.widen(self.norm(h), self.scales(style))  # (B,4C,h,w)
        return x + self.gamma * self.narrow(F.gelu(h))  # (B,C,h,w)

    def _noise_like(self, h: Tensor) -> Tensor:
        noise, size = self.noise_strength * self.noise, h.shape[-2:]
        if noise.shape != size:
            noise = F.interpolate(noise[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        return noise.to(h.dtype)
