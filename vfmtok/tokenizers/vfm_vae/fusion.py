"""Levels of a frozen model to one small map, and latents to a wide one: attention blocks that change the width.

Shapes: B batch, N cells, I and O channels in and out, M the larger of both, H heads, g side of a level, s that of
the latents.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.config import require


class WidthAttention(nn.Module):
    """Self-attention without positions whose output has another width than its input.

    Where it narrows, the outputs of the heads are averaged instead of put side by side.
    """

    def __init__(self, inputs: int, outputs: int, heads: int):
        super().__init__()
        width = max(inputs, outputs)
        self.heads, self.narrows, self.outputs = heads, inputs > outputs, outputs
        self.qkv = nn.Linear(inputs, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("k_bias", torch.zeros(width))  # fixed; published files store it
        self.out = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B,N,I) -> (B,N,O)."""
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias.to(x.dtype))  # (B,N,3M)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 x (B,H,N,M/H)
        y = F.scaled_dot_product_attention(q, k, v)  # (B,H,N,M/H)
        if self.narrows:
            y = y.mean(dim=1)  # (B,N,M/H)
            if y.shape[2] != self.outputs:
                y = F.adaptive_avg_pool1d(y, self.outputs)
        else:
            y = y.transpose(1, 2).flatten(2)  # (B,N,O)
        return self.out(y)


class GatedMLP(nn.Module):
    """A norm, then w2(gelu(w0 x) * w1 x), the GELU by its tanh approximation; the hidden width is twice the input's."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.w0 = nn.Linear(width, 2 * width)
        self.w1 = nn.Linear(width, 2 * width)
        self.w2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.w2(F.gelu(self.w0(x), approximate="tanh") * self.w1(x))


class AttentionBlock(nn.Module):
    """project(norm(x)) + attention(norm(x)), then x += mlp(norm(x)): (B,N,I) -> (B,N,O)."""

    def __init__(self, inputs: int, outputs: int, heads: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(inputs)
        self.attention = WidthAttention(inputs, outputs, heads)
        self.project_norm = nn.LayerNorm(inputs)
        self.project = nn.Linear(inputs, outputs)
        self.mlp_norm = nn.LayerNorm(outputs)
        self.mlp = GatedMLP(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.project_norm(x)) + self.attention(self.attention_norm(x))  # (B,N,O)
        return x + self.mlp(self.mlp_norm(x))


class AttentionProjection(nn.Module):
    """A map to another width by attention blocks: (B,I,h,w) -> (B,O,h,w).

    Args:
        layers: of the blocks, one changes the width, the last where it narrows, else the first.
    """

    def __init__(self, inputs: int, outputs: int, layers: int):
        super().__init__()
        divides = inputs % outputs == 0 or outputs % inputs == 0
        require(divides, "the width of an attention projection", f"must divide {inputs} or the reverse", outputs)
        heads = max(1, inputs // outputs, outputs // inputs)
        narrow = (layers - 1) * [(inputs, inputs)] + [(inputs, outputs)]
        widen = [(inputs, outputs)] + (layers - 1) * [(outputs, outputs)]
        sizes = narrow if inputs > outputs else widen
        self.blocks = nn.ModuleList(AttentionBlock(*size, heads) for size in sizes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-2, b=2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # (B,h*w,I)
        for block in self.blocks:
            x = block(x)
        return x.transpose(1, 2).unflatten(2, size)  # (B,O,h,w)

    @property
    def last_weight(self) -> Tensor:
        """By whose gradients losses of the output are balanced."""
        return self.blocks[-1].mlp.w2.weight


class ConvolutionProjection(nn.Conv2d):
    """The same by one 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, layers: int = 1):
        super().__init__(inputs, outputs, 1)
        nn.init.xavier_normal_(self.weight, gain=0.5)
        nn.init.zeros_(self.bias)

    @property
    def last_weight(self) -> Tensor:
        return self.weight


PROJECTIONS = {"attention": AttentionProjection, "conv": ConvolutionProjection}


class LevelFusion(nn.Module):
    """Every level narrowed and brought to the side of the latents by pixel unshuffle; together to the output's width.

    Args:
        widths: channels of the levels.
        factors: side of every level over the latents' side.
    """

    def __init__(
        self, kind: str, widths: tuple[int, ...], factors: tuple[int, ...], width: int, outputs: int, layers: int
    ):
        super().__init__()
        project = PROJECTIONS[kind]
        self.factors = factors
        self.levels = nn.ModuleList(project(inputs, width, layers) for inputs in widths)
        self.final = project(sum(width * factor**2 for factor in factors), outputs, layers)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """L x (B,C,g,g) -> (B,outputs,s,s)."""
        return self.final(torch.cat(self.narrowed(levels), dim=1))

    def narrowed(self, levels: list[Tensor]) -> list[Tensor]:
        """L x (B,C,g,g) -> L x (B,width*factor^2,s,s)."""
        triples = zip(self.levels, levels, self.factors, strict=True)
        return [F.pixel_unshuffle(project(level), factor) for project, level, factor in triples]
