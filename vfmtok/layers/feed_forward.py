"""Feed-forward blocks."""

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """w3(silu(gate) * value) with gate and value packed in one linear, gate first."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)  # 2 x (B,N,hidden)
        return self.w3(F.silu(gate) * value)  # (B,N,dim)


def swiglu_hidden(mlp_dim: int) -> int:
    """2/3 of ``mlp_dim`` rounded up to a multiple of 8: as many parameters as an ordinary MLP of that hidden width."""
    return (int(mlp_dim * 2 / 3) + 7) // 8 * 8
