"""Cosine vector quantization (van den Oord et al., 2017; unit vectors as in ViT-VQGAN, Yu et al., 2022).

A quantizer maps latents to the codes of a finite codebook. Another one replaces it by keeping ``forward``,
``lookup``, the ``Quantized`` it returns and the switch ``continuous`` (see finite_scalar.py), and by a row in
``quantizers/__init__.py``.

Shapes: B batch, K tokens, V codebook size, E code dimensions.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.config import require_not_negative, require_positive
from vfmtok.layers.precision import at_least_float32


@dataclass(frozen=True)
class CosineConfig:
    """A learned codebook and its losses."""

    kind: Literal["cosine"] = "cosine"
    codebook_size: int = 16384
    code_dim: int = 12
    commit_weight: float = 0.25  # beta of the commitment loss
    entropy_weight: float = 0.0  # weight of the entropy loss; 0 leaves it out
    entropy_temperature: float = 0.01
    PINNED: ClassVar[dict[str, Any]] = {  # see weights/hashing.py; never changed, only added to
        "kind": "cosine",
        "codebook_size": 16384,
        "code_dim": 12,
        "commit_weight": 0.25,
        "entropy_weight": 0.0,
        "entropy_temperature": 0.01,
    }

    def __post_init__(self):
        require_positive(self, "quantizer", "codebook_size", "code_dim", "entropy_temperature")
        require_not_negative(self, "quantizer", "commit_weight", "entropy_weight")

    @classmethod
    def upgraded(cls, tree: dict) -> dict:
        """Version 0.1 wrote the fields of finite scalar quantization here too, empty."""
        if tree.get("levels", 0) is None:
            del tree["levels"]
        return tree


@dataclass
class Quantized:
    """codes (B,K,E), with the straight-through gradient in training (CosineQuantizer's are unit vectors); ids (B,K)
    int64; losses: float32 scalars "vq", "commit" and "entropy", already weighted, to be summed."""

    codes: Tensor
    ids: Tensor
    losses: dict[str, Tensor]


class CosineQuantizer(nn.Module):
    """The code with the largest cosine to the latent; latents and codes are unit vectors.

    Computed in float32 (float64 if the codebook is), under autocast and in a bfloat16 module too.
    """

    def __init__(self, config: CosineConfig):
        super().__init__()
        self.config = config
        self.continuous = False  # training may begin without quantization, see training/codebook_care.py
        bound = 1 / config.codebook_size
        start = torch.empty(config.codebook_size, config.code_dim).uniform_(-bound, bound)
        self.codebook = nn.Parameter(F.normalize(start, dim=-1))  # (V,E)

    def forward(self, latents: Tensor) -> Quantized:
        """latents (B,K,E), of any norm -> Quantized.

        In training with ``continuous`` set, the codes are the normalised latents themselves and the losses are 0.
        """
        with torch.autocast(latents.device.type, enabled=False):
            z = F.normalize(latents.to(at_least_float32(self.codebook).dtype), dim=-1)  # (B,K,E)
            ids = self.nearest(z)  # (B,K)
            codes = self.lookup(ids)  # (B,K,E)
            losses = {
                "vq": (codes - z.detach()).square().mean(),
                "commit": self.config.commit_weight * (codes.detach() - z).square().mean(),
                "entropy": self.config.entropy_weight * self.entropy_loss(z)
                if self.config.entropy_weight and self.training
                else z.new_zeros(()),
            }
            if self.training and self.continuous:
                codes = z
                losses = {name: 0 * loss for name, loss in losses.items()}  # the codebook stays in DDP's graph
            elif self.training:
                codes = z + (codes - z).detach()  # straight-through
            return Quantized(codes, ids, losses)

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (...) -> unit codes (...,E). The gradient flows through the normalisation."""
        return F.normalize(at_least_float32(F.embedding(ids, self.codebook)), dim=-1)

    def nearest(self, z: Tensor) -> Tensor:
        """z (B,K,E) -> ids (B,K)."""
        return self._nearest(z, 1)[:, 0]

    def ranked(self, latents: Tensor, count: int) -> Tensor:
        """latents (B,K,E), of any norm -> ids (B,count,K): of the nearest codes (``forward``'s), of the second nearest,
        and so on. ``count`` is at most V."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._nearest(F.normalize(latents.to(at_least_float32(self.codebook).dtype), dim=-1), count)

    @torch.no_grad()
    def _nearest(self, z: Tensor, count: int) -> Tensor:
        """z (B,K,E) -> ids (B,count,K), nearest first. Blocks of rows keep the (rows, V) scores in the cache."""
        codebook = F.normalize(at_least_float32(self.codebook), dim=-1).t()  # (E,V)
        rows = max(1, _SCORES_PER_BLOCK // codebook.shape[1])
        blocks = []
        for block in z.flatten(0, 1).split(rows):
            scores, found = block @ codebook, []  # (rows,V)
            for _ in range(count):
                found.append(scores.argmax(dim=-1, keepdim=True))  # (rows,1)
                if len(found) < count:
                    scores.scatter_(1, found[-1], -torch.inf)
            blocks.append(torch.cat(found, dim=1))
        return torch.cat(blocks).view(*z.shape[:2], count).transpose(1, 2)

    def entropy_loss(self, z: Tensor, floor: float = 1e-5) -> Tensor:
        """Mean entropy of the soft assignments less the entropy of their mean, in nats; ``floor`` is added to a mean
        inside its logarithm.

        Low when every latent is sure of its code and all codes are used alike. Soft assignment:
        softmax(-d / temperature) over codes, d the squared Euclidean distance 2 - 2 cos.
        """
        codebook = F.normalize(at_least_float32(self.codebook), dim=-1)  # (V,E)
        distance = 2 - 2 * z.flatten(0, 1) @ codebook.t()  # (B*K,V)
        log_p = (-distance / self.config.entropy_temperature).log_softmax(dim=-1)
        p = log_p.exp()
        mean_entropy = -(p * log_p).sum(dim=-1).mean()
        m = p.mean(dim=0)  # (V,)
        return mean_entropy + (m * (m + floor).log()).sum()


_SCORES_PER_BLOCK = 1 << 22  # 16 MiB of float32
