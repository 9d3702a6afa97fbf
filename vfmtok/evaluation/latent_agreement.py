"""Generated latents beside those of the training images: a floor, and the nearest neighbour. Ids: ``agreement.py``.

Latents are compared as generators see them: normalised by the cache's statistics.

Shapes: N generated latents, M rows of a cache, V views, (C,h,w) a latent, D = C*h*w.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok.data.code_cache import as_code
from vfmtok.data.latent_cache import LatentCache
from vfmtok.data.order import evenly_spaced
from vfmtok.errors import DataError

COMPARED = 2**24  # values of the cache in memory


def positional_latents(train: LatentCache, labels: Tensor, seed: int) -> Tensor:
    """(N,C,h,w): every place is that of a random training image of the class, another image for each place.

    Raises DataError: a class has no training image.
    """
    random, classes = np.random.default_rng(seed), train.labels.numpy()
    channels, height, width = train.code.shape
    rows = {label: np.flatnonzero(classes == label) for label in set(labels.tolist())}
    places = np.arange(height * width)
    found = torch.empty(len(labels), channels, height * width)
    for row, label in enumerate(labels.tolist()):
        if not len(rows[label]):
            raise DataError(f"no training image has class {label}")
        donors = random.choice(rows[label], height * width)
        views = random.integers(train.num_views, size=height * width)
        found[row] = train.cells(donors, views, places).t()  # (C,h*w)
    return found.view(len(labels), channels, height, width)


def largest_similarity(
    latents: Tensor, train: LatentCache, limit: int | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """(N,): the largest cosine of normalised latents (N,C,h,w) with any view of any training image; 1 is a copy.

    Args:
        limit: compares with so many training images at equal distances; None with all.
    """
    statistics = train.statistics

    def units(raw: Tensor) -> Tensor:
        """(n,C,h,w) -> (n,D) of length 1."""
        return F.normalize(statistics.normalise(raw.to(device)).flatten(1), dim=1)

    own, best = units(latents), torch.full((len(latents),), -1.0, device=device)
    chosen = evenly_spaced(len(train) if limit is None else limit, len(train))
    step = max(1, COMPARED // (train.num_views * own.shape[1]))
    for start in range(0, len(chosen), step):
        rows = train.rows(chosen[start : start + step])  # (m,V,M,C,h,w)
        others = units(as_code(rows.reshape(-1, *rows.shape[2:]), train.code))  # (m*V,D)
        for first in range(0, len(own), 1024):
            part = slice(first, first + 1024)
            best[part] = torch.maximum(best[part], (own[part] @ others.t()).amax(1))
    return best.cpu()
