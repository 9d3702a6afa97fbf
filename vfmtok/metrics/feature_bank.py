"""Features kept whole, for the metrics that compare pairs (precision and recall, KID) or need them all (probing).

Shapes: N samples, B batch, D features.
"""

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.errors import EvaluationError


class FeatureBank:
    """Features of samples 0 ... ``num_samples`` - 1, which may come in any order and on any rank; kept on the CPU.

    Args:
        num_samples: None takes whatever samples come, each once.
    """

    def __init__(self, num_samples: int | None = None):
        self.num_samples = num_samples
        self.reset()

    def reset(self) -> None:
        self._features: list[Tensor] = []
        self._indices: list[Tensor] = []

    def update(self, features: Tensor, indices: Tensor) -> None:
        """features (B,D); indices (B,) int64, each sample's place among all."""
        if features.dim() != 2 or indices.shape != features.shape[:1]:
            raise EvaluationError(f"features {tuple(features.shape)} don't go with indices {tuple(indices.shape)}")
        self._features.append(features.detach().to("cpu", copy=True))
        self._indices.append(indices.to("cpu", copy=True))

    def compute(self) -> Tensor:
        """(N,D) of all ranks in the order of indices, the same on every rank; every rank must call it.

        Raises:
            EvaluationError: a sample is missing or came twice.
        """
        mine = (torch.cat(self._features), torch.cat(self._indices)) if self._indices else None
        parts = [part for part in distributed.gather(mine) if part is not None]
        if not parts:
            raise EvaluationError("no features to compare")
        features, indices = (torch.cat(column) for column in zip(*parts, strict=True))
        order = indices.argsort()
        distinct = indices.unique()  # ascending
        if not torch.equal(indices[order], distinct if self.num_samples is None else torch.arange(self.num_samples)):
            wanted = "each" if self.num_samples is None else f"each of {self.num_samples}"
            raise EvaluationError(f"{len(indices)} features of {len(distinct)} different samples, not one of {wanted}")
        return features[order]
