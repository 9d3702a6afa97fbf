"""What a token cache decodes to, measured: PSNR and codebook usage.

Shapes: N records, V views, K tokens, B images, S side.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class CodebookUsage:
    used: int  # codes that occur
    size: int
    perplexity: float  # exp of the entropy of the codes' frequencies: size if all are equally frequent


def psnr(originals: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """(B,S,S,3) uint8 twice -> (B,) in dB, with the peak at 255 and the mean over pixels and channels."""
    error = (originals.astype(np.float64) - decoded.astype(np.float64)) ** 2
    return 10 * np.log10(255**2 / np.maximum(error.mean(axis=(1, 2, 3)), 1e-10))


def codebook_usage(ids: np.ndarray, size: int) -> CodebookUsage:
    """Over all of ids (N,V,K), which may be a memory map: it is read in parts."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(ids), 4096):
        counts += np.bincount(ids[start : start + 4096].ravel(), minlength=size)
    frequencies = counts[counts > 0] / counts.sum()
    perplexity = float(np.exp(-(frequencies * np.log(frequencies)).sum()))
    return CodebookUsage(int((counts > 0).sum()), size, perplexity)
