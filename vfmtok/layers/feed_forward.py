"""Feed-forward blocks."""

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """w3(silu(gate) * value) with gate and value packed in one linear, gate first.

    The hidden width is 2/3 of ``mlp_dim`` rounded up to a multiple of 8, which keeps the
    parameter count of an ordinary MLP of hidden width ``mlp_dim``.
    """

    def __init__(self, dim: int, mlp_dim: int):
        super().__init__()
        hidden = (int(mlp_dim * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)  # 2 x (B,N,hidden)
        return self.w3(F.silu(gate) * value)  # (B,N,dim)
