"""A generator that is no transformer, as a family of its own: ``python unigram_family.py SCRIPT ARGS`` runs a script of
the repository (or ``vfmtok``) with its row in the table.

Every token is drawn by itself, from a learned distribution for its class and place.
"""

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from vfmtok import generators
from vfmtok.code import Ids, Segment
from vfmtok.families import Family
from vfmtok.generators.counter_random import exponentials

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class UnigramConfig:
    kind: Literal["unigram"] = "unigram"
    vocab_size: int = 64
    num_tokens: int = 16
    num_classes: int = 3
    label_dropout_p: float = 0.3

    @property
    def code(self) -> Ids:
        return Ids((Segment(self.num_tokens, self.vocab_size),))

    @classmethod
    def fields_of_code(cls, code) -> dict[str, int]:
        return {"vocab_size": code.segments[0].size, "num_tokens": code.num_tokens}


@dataclass(frozen=True)
class UnigramSampling:
    cfg_scale: float = 1.0

    @property
    def guidance(self) -> str:
        return "no CFG" if self.cfg_scale == 1 else f"CFG {self.cfg_scale:g}"


class Unigram(nn.Module):
    sampling = UnigramSampling

    def __init__(self, config: UnigramConfig):
        super().__init__()
        self.config, self.code, self.num_classes = config, config.code, config.num_classes
        self.null_class = config.num_classes
        self.logits = nn.Parameter(torch.randn(config.num_classes + 1, config.num_tokens, config.vocab_size) * 0.1)

    def loss(self, code, labels, draws=None):
        if self.training and draws is not None:
            dropped = draws.uniform("label dropout", 1)[:, 0] < self.config.label_dropout_p
            labels = torch.where(dropped, self.null_class, labels)
        return {"token": F.cross_entropy(self.logits[labels].flatten(0, 1), code.flatten())}

    def held_out(self, code, labels):
        losses = F.cross_entropy(self.logits[labels].flatten(0, 1), code.flatten(), reduction="none")
        return {"loss": losses.view_as(code).double().mean(1)}

    @torch.no_grad()
    def sample(self, labels, *, seed=0, sample_indices=None, compile=False, cfg_scale=1.0):
        labels = labels.to(self.logits.device)
        samples = torch.arange(len(labels)) if sample_indices is None else sample_indices
        free = self.logits[self.null_class]
        guided = free + cfg_scale * (self.logits[labels] - free)  # (B,K,V)
        steps = torch.arange(self.config.num_tokens, device=labels.device).split(1)
        chance = torch.stack([exponentials(seed, samples.to(labels.device), n, guided.shape[2]) for n in steps], dim=1)
        return (guided.softmax(-1) / chance).argmax(-1)  # (B,K)


generators.GENERATORS["unigram"] = Family(UnigramConfig, "unigram_family:Unigram")

if __name__ == "__main__":
    sys.modules["unigram_family"] = sys.modules["__main__"]  # one class, by whichever name it is found
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "vfmtok":
        runpy.run_module("vfmtok", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
