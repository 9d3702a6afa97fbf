"""Which order a sample trains on, and whether without its class: functions of (seed, sample, step).

Shapes: B batch, K tokens.
"""

import torch
from torch import Tensor

from vfmtok.generators.counter_random import Draws
from vfmtok.generators.rar.config import RARConfig


def training_orders(code: Tensor, draws: Draws | None, random_share: float, config: RARConfig) -> tuple[Tensor, Tensor]:
    """code (B,K) -> order (B,K) int64, a permutation or raster each; which labels are dropped (B,) bool.

    Without ``draws`` PyTorch's generator decides.
    """
    batch, tokens = code.shape
    if draws is None:
        keys, chances = torch.rand(batch, tokens, device=code.device), torch.rand(batch, 2, device=code.device)
    else:
        keys, chances = draws.uniform("order", tokens), draws.uniform("orders and labels", 2)  # (B,K), (B,2)
    raster = torch.arange(tokens, device=code.device).expand(batch, -1)  # (B,K)
    # Equal keys (of 2^24 values) keep their raster order: the bias is far below what a sample can show.
    order = torch.where(chances[:, :1] < random_share, keys.argsort(dim=1, stable=True), raster)
    return order, chances[:, 1] < config.label_dropout_p
