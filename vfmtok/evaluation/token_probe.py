"""The paper's L.P. column: a linear probe (metrics/probe.py) on what an image's tokens say, trained on one set of
records and tested on another.

That is the mean of the region tokens, where a tokenizer has them. Elsewhere it is all latents behind the bottleneck,
side by side: the features before it are the encoder's own, and a mean of 8 numbers cannot tell 1000 classes apart.

Shapes: N records, n good records, B batch, K tokens, D width, E code dimensions, V values of an image.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vfmtok import distributed
from vfmtok.data.loader import ImageLoader, check_bad
from vfmtok.data.order import BlockOrder
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.errors import ConfigError, DataError, EvaluationError
from vfmtok.evaluation.results import Measured, Number
from vfmtok.layers.precision import full_float32
from vfmtok.metrics.probe import ProbeRecipe, linear_probe
from vfmtok.tokenizers.contract import Encoding, Tokenizer


@dataclass(frozen=True)
class TokenProbe:
    """What the probe learns from, and how."""

    train: RecordDataset
    recipe: ProbeRecipe = field(default_factory=ProbeRecipe)

    def job(self) -> dict[str, Any]:
        """What changes its result."""
        return {"train": self.train.fingerprint, "optimizer": self.recipe.optimizer}

    def check(self, tokenizer: Tokenizer, val: RecordDataset) -> None:
        """Raise DataError unless ``val`` is another set with the same classes, ConfigError without latents."""
        size = tokenizer.config.image_size
        with torch.no_grad():
            encoding = tokenizer.encode(torch.zeros(1, 3, size, size, device=tokenizer.device))
        if not hasattr(encoding, "region_tokens") and getattr(encoding, "latents", None) is None:
            raise ConfigError(f"--linear-probe: a {tokenizer.config.kind} tokenizer has no latents to learn from")
        if self.train.fingerprint == val.fingerprint:
            raise DataError(f"the linear probe would be tested on the images it learns from: {val.path}")
        if self.train.classes != val.classes:
            raise DataError(f"{self.train.path} and {val.path} do not have the same classes: no probe can be tested")

    def measure(
        self,
        tokenizer: Tokenizer,
        val: RecordDataset,
        batch: int,
        num_workers: int,
        world: distributed.World,
        results: Measured,
    ) -> None:
        """Add top-1 and top-5, or a warning that it diverged (in the first process). Every process must call it.

        Raises:
            DataError: too many records are bad, or the sets do not go together.
        """
        sets = [token_vectors(tokenizer, records, batch, num_workers, world) for records in (self.train, val)]
        if not world.is_main:
            return
        classes = len(val.classes) if val.classes else int(max(found.labels.max() for found in sets)) + 1
        (tokens, labels, _), (val_tokens, val_labels, _) = sets
        try:
            found = linear_probe(tokens.to(world.device), labels, val_tokens, val_labels, classes, self.recipe)
        except EvaluationError as error:
            results.warnings.append(f"L.P. is left out: {error}")
            return
        inputs = f"{sets[0].what} ({tokens.shape[1]:,} values)"
        how = (
            f"% of {found.val_images:,} images, {classes:,} classes; MAE's linear probe ({self.recipe.optimizer}, "
            f"{self.recipe.epochs} epochs, batch {min(self.recipe.batch, found.train_images):,}, no augmentation) on "
            f"{inputs}, trained on {found.train_images:,} images of {'/'.join(self.train.path.parts[-2:])}"
        )
        for name, share in (("top-1", found.top1), ("top-5", found.top5)):
            results.numbers.append(Number(f"L.P. {name}", 100 * share, how, 2))


class TokenVectors(NamedTuple):
    """What images' tokens say."""

    values: Tensor  # (n,V) float32
    labels: Tensor  # (n,)
    what: str  # for people


def vector_of(encoding: Encoding) -> tuple[Tensor, str]:
    """What the probe reads of an encoding: (B,V) float32, and what it is, for people."""
    if hasattr(encoding, "region_tokens"):
        tokens = encoding.region_tokens  # (B,K,D)
        return tokens.float().mean(dim=1), f"the mean of {tokens.shape[1]} region tokens"
    latents = encoding.latents  # (B,K,E) or (B,C,h,w); one of each codebook where there are several
    parts = latents if isinstance(latents, tuple) else (latents,)
    shapes = " and ".join(str(tuple(part.shape[1:])) for part in parts)
    values = torch.cat([part.float().flatten(1) for part in parts], dim=1)
    return values, f"the latents {shapes} before quantization, side by side"


def token_vectors(
    tokenizer: Tokenizer, records: RecordDataset, batch: int, num_workers: int, world: distributed.World
) -> TokenVectors:
    """Of the good records in their order, in every process, which all must call it.

    Raises:
        DataError: more than 1% of the records are bad.
    """
    blocks = [np.arange(start, min(start + batch, len(records))) for start in range(0, len(records), batch)]
    share = blocks[world.rank :: world.size]
    found: list[tuple[np.ndarray, Tensor, Tensor]] = []
    what = ""  # of a process with no share
    with distributed.together():
        loader = ImageLoader(
            records,
            EvaluationCrop(tokenizer.config.image_size),
            BlockOrder(share),
            num_workers=num_workers,
            max_bad_fraction=None,
        )
        total, silent = sum(map(len, share)), not world.is_main
        bar = tqdm(total=total, desc=f"probe: {records.path.name}", unit="image", disable=silent)
        with contextlib.closing(loader), bar, torch.no_grad(), full_float32(world.device.type):
            for rows, images in zip(share, loader, strict=True):
                pixels = to_unit_range(images.images.to(world.device, non_blocking=True))  # (B,3,S,S)
                vectors, what = vector_of(tokenizer.encode(pixels))  # (B,V)
                good = torch.from_numpy(images.indices.numpy() == rows)  # others stand in for bad records
                found.append((rows[good.numpy()], vectors.cpu()[good], images.labels[good]))
                bar.update(len(rows))
    everything = sorted((entry for part in distributed.gather(found) for entry in part if len(entry[0])), key=_first)
    check_bad(len(records) - sum(len(rows) for rows, _, _ in everything), records)
    what = next(said for said in distributed.gather(what) if said)
    values, labels = (torch.cat([entry[part] for entry in everything]) for part in (1, 2))
    return TokenVectors(values, labels, what)


def _first(entry: tuple[np.ndarray, Tensor, Tensor]) -> int:
    return int(entry[0][0])
