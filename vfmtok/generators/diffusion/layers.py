"""The layers of a DiT: blocks that a condition modulates (adaLN-Zero), and what surrounds them.

Shapes: B batch, T tokens (the class token included), D width, H heads, E = D/H, F inside the feed-forward block. A
condition is (B,1,D), the same for all tokens, or (B,T,D).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.generators.diffusion.config import DiTConfig
from vfmtok.layers.feed_forward import SwiGLU
from vfmtok.layers.norms import RMSNorm
from vfmtok.layers.precision import at_least_float32
from vfmtok.layers.rotary import rotate

EPS = 1e-6  # of all norms, but for those of queries and keys without RMS
QK_LAYER_NORM_EPS = 1e-5


class ModulatedRMSNorm(RMSNorm):
    """Besides, with the modulation that follows it."""

    def modulated(self, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        """forward(x) * (1 + scale) + shift in float32, cast back: in three passes over x, which are memory's work."""
        y = at_least_float32(x)
        length = torch.linalg.vector_norm(y, dim=-1, keepdim=True)  # (...,1)
        y = y * torch.rsqrt(length.square() / x.shape[-1] + self.eps)
        return scaled_and_shifted(y, self.weight * (1 + scale), shift).to(x.dtype)


class PlainNorm(nn.Module):
    """Layer norm without weights."""

    def modulated(self, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        """norm(x) * (1 + scale) + shift in float32, cast back."""
        y = F.layer_norm(at_least_float32(x), x.shape[-1:], eps=EPS)  # as x
        return scaled_and_shifted(y, 1 + scale, shift).to(x.dtype)


def new_norm(config: DiTConfig, dim: int) -> nn.Module:
    return ModulatedRMSNorm(dim, EPS) if config.norm == "rms" else PlainNorm()


def scaled_and_shifted(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    return x * scale if shift is None else torch.addcmul(shift, x, scale)


class Block(nn.Module):
    """x += gate * attention(modulated norm(x)); x += gate * mlp(modulated norm(x))."""

    def __init__(self, config: DiTConfig, width: int, heads: int):
        super().__init__()
        self.shift = config.shift
        self.attention_norm = new_norm(config, width)
        self.attention = Attention(config, width, heads)
        self.mlp_norm = new_norm(config, width)
        hidden = config.hidden(width)
        self.mlp = SwiGLU(width, hidden) if config.mlp == "swiglu" else MLP(width, hidden)
        self.modulation = nn.Linear(width, (6 if config.shift else 4) * width)

    def forward(self, x: Tensor, condition: Tensor, rotary: Tensor | None) -> Tensor:
        """x (B,T,D), condition (B,1 or T,D), rotary (2,T,1,E) or None -> (B,T,D)."""
        parts = at_least_float32(self.modulation(F.silu(condition))).unflatten(-1, (-1, x.shape[-1]))
        if self.shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = parts.unbind(-2)  # 6 x (B,1 or T,D)
        else:
            (scale1, gate1, scale2, gate2), shift1, shift2 = parts.unbind(-2), None, None
        y = self.attention(self.attention_norm.modulated(x, scale1, shift1), rotary)  # (B,T,D)
        x = torch.addcmul(at_least_float32(x), gate1, at_least_float32(y)).to(x.dtype)
        y = self.mlp(self.mlp_norm.modulated(x, scale2, shift2))  # (B,T,D)
        return torch.addcmul(at_least_float32(x), gate2, at_least_float32(y)).to(x.dtype)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(E)) v over all tokens, q, k and v from one packed projection."""

    def __init__(self, config: DiTConfig, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            dim = width // heads
            rms = config.norm == "rms"
            self.q_norm, self.k_norm = (
                RMSNorm(dim, EPS) if rms else nn.LayerNorm(dim, QK_LAYER_NORM_EPS) for _ in "qk"
            )

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """x (B,T,D) -> (B,T,D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B,T,3,H,E)
        qk, v = qkv[:, :, :2], qkv[:, :, 2]  # (B,T,2,H,E), (B,T,H,E)
        if self.q_norm is not None:
            qk = torch.stack([self.q_norm(qk[:, :, 0]), self.k_norm(qk[:, :, 1])], dim=2)  # (B,T,2,H,E)
        if rotary is not None:
            qk = rotate(qk, rotary)  # (B,T,2,H,E) float32
        q, k = qk.to(v.dtype).unbind(2)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # 3 x (B,H,T,E)
        out = F.scaled_dot_product_attention(q, k, v)  # (B,H,T,E)
        return self.proj(out.transpose(1, 2).flatten(2))  # (B,T,D)


class MLP(nn.Module):
    """Linear, GELU by its tanh formula, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # (B,T,F) inside, (B,T,D) out


class TimeEmbedding(nn.Module):
    """Waves of the network's time, through two linears."""

    def __init__(self, config: DiTConfig, width: int):
        super().__init__()
        self.fourier = config.time_embedding == "fourier"
        if self.fourier:  # drawn once, never learned
            self.frequencies = nn.Parameter(torch.empty(256), requires_grad=False)
        self.mlp = nn.Sequential(nn.Linear(512 if self.fourier else 256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) from 0 to 1 -> (B,D)."""
        t = at_least_float32(t)[:, None]  # (B,1)
        if self.fourier:
            angles = 2 * math.pi * t * at_least_float32(self.frequencies)  # (B,256)
            waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (B,512)
        else:
            angles = t * 10000.0 ** (-torch.arange(128, device=t.device) / 128)  # (B,128)
            waves = torch.cat([angles.cos(), angles.sin()], dim=1)  # (B,256)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


class TokenInput(nn.Module):
    """The noisy class token as the first token of the sequence: linear, layer norm."""

    def __init__(self, token_dim: int, width: int):
        super().__init__()
        self.linear = nn.Linear(token_dim, width)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, token: Tensor) -> Tensor:
        """(B,Z) -> (B,1,D)."""
        return self.norm(self.linear(token))[:, None]


class Output(nn.Module):
    """From states to velocities, modulated."""

    def __init__(self, config: DiTConfig, width: int):
        super().__init__()
        self.patch, self.side = config.patch, config.side
        self.norm = new_norm(config, width)
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, config.patch**2 * config.in_channels)
        self.token = None if config.token_dim is None else nn.Linear(width, config.token_dim)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (B,T,D), condition (B,1 or T,D) -> (B,C,S,S), and of the class token (B,Z), both float32."""
        shift, scale = at_least_float32(self.modulation(F.silu(condition))).chunk(2, dim=-1)  # 2 x (B,1 or T,D)
        x, token = self.norm.modulated(x, scale, shift), None  # (B,T,D)
        if self.token is not None:
            token, x = at_least_float32(self.token(x[:, 0])), x[:, 1:]  # (B,Z), (B,N,D)
        x = at_least_float32(self.linear(x))  # (B,N,p*p*C)
        x = x.view(len(x), self.side, self.side, self.patch, self.patch, -1)  # (B,h,w,p,p,C)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3), token  # (B,C,S,S)


def patch_embedding(config: DiTConfig, width: int) -> nn.Conv2d:
    return nn.Conv2d(config.in_channels, width, config.patch, config.patch)


def as_tokens(feature_map: Tensor) -> Tensor:
    """(B,D,h,w) -> (B,h*w,D), row by row."""
    return feature_map.flatten(2).transpose(1, 2)


def sincos_columns_first(side: int, dim: int) -> Tensor:
    """Fixed positions (side*side,dim) float32 on the CPU, computed in float64: sines and cosines of the **column** in
    the first half, of the row in the second, at 10000^(-k / (dim/4))."""
    with torch.device("cpu"):  # also where the model is being built on the meta device
        frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))  # (D/4,)
        angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # (side,D/4)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side,D/2)
        columns, rows = waves[None].expand(side, -1, -1), waves[:, None].expand(-1, side, -1)  # 2 x (side,side,D/2)
        return torch.cat([columns, rows], dim=-1).flatten(0, 1).float()
