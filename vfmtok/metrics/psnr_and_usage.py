"""How near decoded images are to their originals, and how the codes were used: PSNR, usage, perplexity.

The one home of these formulas: token caches print them, training logs them, the evaluation sums them over ranks.

Shapes: B images, H, W sides, V codebook size, N records.
"""

import numpy as np
import torch
from torch import Tensor


def psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Two batches (B,3,H,W) in [0,1] -> (B,) in dB: -10 log10 of the mean squared error; equal images give infinity."""
    return -10 * (originals - reconstructions).square().mean(dim=(1, 2, 3)).log10()


def usage_of_counts(counts: Tensor) -> tuple[float, float]:
    """How often each code occurred, (V,) integers and not all 0 -> the share of codes that occur, and the perplexity:
    exp of the entropy of their frequencies in nats, 1 ... V."""
    counts = counts.cpu().double()  # MPS has no float64
    p = counts / counts.sum()
    return (counts > 0).double().mean().item(), (-torch.xlogy(p, p).sum()).exp().item()


def count_codes(ids: np.ndarray, size: int) -> Tensor:
    """(V,) int64 over all of ids (N,...), which may be a memory map: it is read in parts."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(ids), 4096):
        counts += np.bincount(ids[start : start + 4096].ravel(), minlength=size)
    return torch.from_numpy(counts)
