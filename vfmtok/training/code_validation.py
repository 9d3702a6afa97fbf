"""How well a generator predicts held-out ids, beside what knows nothing or only frequencies; and its pictures.

Shapes: B batch, K tokens, V vocabulary, N samples.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok import distributed
from vfmtok.generators.gpt.model import GPT

OVERFIT_BY = 0.05  # nats per token above the best validation: an alarm


def unigram_cross_entropy(train_ids: Tensor, held_out_ids: Tensor, vocab_size: int) -> float:
    """Nats per token of held-out ids under the frequencies of the training ids, one added to every count."""
    counts = torch.bincount(train_ids.flatten(), minlength=vocab_size).double() + 1  # (V,)
    return float(-(counts / counts.sum()).log()[held_out_ids.flatten()].mean())


class HeldOutTokens:
    """ids (N,K) and labels (N,), the same in every process, measured in ``batch`` rows per process and pass."""

    def __init__(self, ids: Tensor, labels: Tensor, batch: int, world: distributed.World):
        self.ids, self.labels, self.batch, self.world = ids, labels, batch, world

    @torch.no_grad()
    def measure(self, gpt: GPT, autocast) -> dict[str, float]:
        """The mean "loss" -log p(token), in nats, and "accuracy", the share of tokens that the model holds likeliest.

        The GPT is in eval mode. Every process must call it, and makes as many passes as the others, all of ``batch``
        rows: sharded weights are gathered in each, and a compiled GPT is compiled for every number of rows.
        """
        count, device = len(self.ids), self.world.device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        for start in range(0, count, self.batch * self.world.size):
            rows = start + self.world.rank * self.batch + torch.arange(self.batch)  # (B,)
            counts = (rows < count).to(device)[:, None]  # (B,1): beyond the end the last one comes again, uncounted
            rows = rows.clamp(max=count - 1)
            ids, labels = self.ids[rows].to(device), self.labels[rows].to(device)  # (B,K), (B,)
            with autocast():
                logits = gpt(labels, ids[:, :-1]).logits  # (B,K,V)
            losses = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none")  # (B*K,)
            losses, hits = losses.view_as(ids), logits.argmax(-1) == ids  # 2 x (B,K)
            sums += torch.stack([(losses.double() * counts).sum(), (hits * counts).sum().double()])
        loss, accuracy = (distributed.sum_over_ranks(sums) / self.ids.numel()).tolist()
        return {"loss": loss, "accuracy": accuracy}


def baselines(train_ids: Tensor, held_out_ids: Tensor, vocab_size: int) -> dict[str, float]:
    """Nats per token of knowing nothing, and of knowing how frequent each id is."""
    return {
        "uniform": math.log(vocab_size),
        "unigram": unigram_cross_entropy(train_ids, held_out_ids, vocab_size),
    }


class TokenAlarms:
    """Lines about trouble that only validation shows, each told when it begins. A run that goes on knows its best."""

    def __init__(self):
        self._best, self._active = math.inf, set()

    def check(self, loss: float, unigram: float, warmed_up: bool) -> list[str]:
        """``loss``: of the better of the weights and their average."""
        found = {}
        if loss > self._best + OVERFIT_BY:
            found["overfit"] = (
                f"the held-out loss is {loss:.3f}, {loss - self._best:.3f} above its best: the model over-fits (more "
                "views in the cache, more dropout, a smaller model or fewer steps; the best checkpoint is kept)"
            )
        if warmed_up and loss >= unigram:
            found["unigram"] = (
                f"the held-out loss is {loss:.3f}, no better than knowing how frequent ids are ({unigram:.3f})"
            )
        self._best = min(self._best, loss)
        lines = [line for name, line in found.items() if name not in self._active]
        self._active = set(found)
        return lines

    def state_dict(self) -> dict[str, float | None]:
        return {"best": self._best if math.isfinite(self._best) else None}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self._best = math.inf if state["best"] is None else state["best"]
