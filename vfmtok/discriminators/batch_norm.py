"""Batch norms whose statistics are those of a part of the batch, or of the batches of all ranks.

Both compute in float32, under autocast too, and give back the dtype they got.

Shapes: B batch, C channels, L positions, G groups, n samples of a group.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vfmtok.distributed import sum_over_ranks
from vfmtok.errors import ConfigError
from vfmtok.layers.precision import at_least_float32

# --------------------------------------------------------------------------------------
# A part of the batch
# --------------------------------------------------------------------------------------


class LocalBatchNorm(nn.Module):
    """Batch norm over ceil(B/8) contiguous groups of samples (Sauer et al., StyleGAN-T, 2023).

    Per group and channel: (x - mean) / sqrt(biased variance + eps) over samples and positions, then
    a learned scale and shift. No running statistics: training and evaluation are alike. If B does
    not split evenly, the first groups get one sample more.

    A group never reaches over ranks, whose batches are grouped one by one. Several ranks equal one
    process if every rank's batch is a multiple of 8 and the one process has them one after the other.
    """

    def __init__(self, channels: int, eps: float = 1e-6, virtual_batch: int = 8):
        super().__init__()
        self.eps = eps
        self.virtual_batch = virtual_batch
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B,C,L) -> (B,C,L)."""
        groups = -(-x.shape[0] // self.virtual_batch)
        size, larger = divmod(x.shape[0], groups)  # the first `larger` groups have size + 1 samples
        with torch.autocast(x.device.type, enabled=False):
            parts = x.split([larger * (size + 1), (groups - larger) * size])
            parts = [
                self._normalise(at_least_float32(part).unflatten(0, (-1, n))).flatten(0, 1)
                for part, n in zip(parts, (size + 1, size), strict=True)
                if len(part)
            ]
            y = torch.cat(parts) if len(parts) > 1 else parts[0]  # (B,C,L)
            return (y * self.weight[:, None] + self.bias[:, None]).to(x.dtype)

    def _normalise(self, x: Tensor) -> Tensor:
        """x (G,n,C,L) -> the same with mean 0 and variance 1 per group and channel."""
        variance, mean = torch.var_mean(x, dim=(1, 3), keepdim=True, correction=0)  # (G,1,C,1)
        return (x - mean) * (variance + self.eps).rsqrt()


# --------------------------------------------------------------------------------------
# The batches of all ranks
# --------------------------------------------------------------------------------------


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with the statistics of all ranks' batches in training, on CPUs as on GPUs.

    PyTorch's SyncBatchNorm does not run on the CPU; this one does, over gloo or NCCL, and gives what
    one process with all samples would. ``nn.SyncBatchNorm.convert_sync_batchnorm`` still converts it.
    All ranks must go forward, and backward, together; their batches may differ in size.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B,C,H,W) -> (B,C,H,W). Raises ConfigError in training with a single value of each channel."""
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if self.training and ranks * x.numel() == x.shape[1]:
            raise ConfigError(
                "the discriminator's batch norm meets one value of each channel, which has no variance: train on more "
                "images a pass (run.global_batch, run.accumulation) or on larger ones"
            )
        with torch.autocast(x.device.type, enabled=False):
            values = at_least_float32(x)
            y = self._over_ranks(values) if self.training and ranks > 1 else super().forward(values)
            return y.to(x.dtype)

    def _over_ranks(self, x: Tensor) -> Tensor:
        """Two sums over ranks, the second of squares about the mean: squares about zero would lose digits."""
        count = x.new_full((1,), x.numel() / x.shape[1])
        total = _SumOverRanks.apply(torch.cat([x.sum(dim=(0, 2, 3)), count]))  # (C+1,)
        count = total[-1].detach()
        mean = total[:-1] / count  # (C,)
        centred = x - mean[:, None, None]  # (B,C,H,W)
        variance = _SumOverRanks.apply(centred.square().sum(dim=(0, 2, 3))) / count  # (C,)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = (variance + self.eps).rsqrt() * self.weight  # (C,)
        return centred * scale[:, None, None] + self.bias[:, None, None]


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks. Every rank's loss depends on it, so a rank's gradient is the sum of all of theirs."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.clone())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.contiguous().clone())
