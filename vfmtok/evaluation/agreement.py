"""Do images look like their classes, and are they new? A probe on a frozen encoder, its floor, and overlap of ids.

The probe is no measure of quality: more guidance raises agreement and lowers variety. Everything is bounded for data
of any size: records stream through loading processes, of images only features are kept, and token caches are read in
the order of the file. What is left out is chosen at equal distances, never at random.

Shapes: N images, K tokens, C channels, S side, M rows of a cache, V views.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from vfmtok.data.code_cache import CodeCache
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import BlockOrder, evenly_spaced
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.encoders.config import EncoderConfig
from vfmtok.encoders.named import ENCODERS
from vfmtok.encoders.vfm import Encoder
from vfmtok.errors import ConfigError, DataError
from vfmtok.metrics.probe import ProbeRecipe, train_probe
from vfmtok.tokenizers.contract import Tokenizer, code_of

# AdamW at MAE's schedule: LARS is made for batches larger than a small data set.
PROBE = ProbeRecipe(optimizer="adamw", base_lr=1e-2, batch=256, epochs=40, warmup_epochs=4, weight_decay=1e-2)
BATCH = 64  # images at a time through tokenizer and encoder
PYRAMID = 8  # of an encoder of at most so many levels the probe reads all
COMPARED = 2**24  # ids compared at a time


def open_probe_encoder(
    tokenizer: Tokenizer, levels: list[int] | None = None, other: EncoderConfig | None = None
) -> Encoder:
    """A frozen encoder with its published weights, reading these levels: the tokenizer's, or an ``other``, by which
    tokenizers with different encoders are compared.

    Raises ConfigError: the tokenizer has none. WeightsError: its weights are not there.
    """
    if other is None:
        encoder = getattr(tokenizer, "encoder", None)
        if not isinstance(encoder, Encoder) or not encoder.config.frozen:
            raise ConfigError(
                f"a {tokenizer.config.kind} tokenizer with this encoder has no frozen features for a probe: name "
                "another encoder (--encoder)"
            )
        known = encoder.config.levels
    else:
        encoder = Encoder(dataclasses.replace(other, levels=(1,)))
        known = ENCODERS[other.name].levels if other.name in ENCODERS else (encoder.available_levels,)
    if levels is None:
        available = encoder.available_levels
        levels = known if available > PYRAMID else range(1, available + 1)
    return Encoder(dataclasses.replace(encoder.config, levels=tuple(levels))).eval()


def read_batches(
    records: RecordDataset, size: int, limit: int | None = None, num_workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Evaluation crops (n,3,S,S) uint8 and labels (n,) of all records, or of ``limit`` at equal distances.

    Raises DataError: too many are bad. In the place of a bad one is the next good one, with its own label.
    """
    indices = evenly_spaced(len(records) if limit is None else limit, len(records))
    blocks = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]
    loader = ImageLoader(records, EvaluationCrop(size), BlockOrder(blocks), num_workers=num_workers)
    with contextlib.closing(loader):
        yield from ((batch.images.contiguous(), batch.labels) for batch in loader)


class ClassProbe:
    """A linear probe on an encoder's features: which class does an image show?

    Attributes:
        count: images it learned from.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Tokenizer,
        train: RecordDataset,
        num_classes: int,
        limit: int | None = None,
        num_workers: int = 0,
    ):
        self.encoder, self.tokenizer, self.size = encoder, tokenizer, tokenizer.config.image_size
        found = [(self._features(images), y) for images, y in read_batches(train, self.size, limit, num_workers)]
        features, labels = (torch.cat(column) for column in zip(*found, strict=True))
        self.count = len(labels)
        self.probe = train_probe(features, labels, num_classes, PROBE)

    def agrees(self, images: Tensor, labels: Tensor) -> Tensor:
        """(n,) bool: the likeliest class of images (n,3,S,S) uint8 is their label."""
        return self._guess(self._features(images)) == labels

    def agreement_of_codes(self, codes: Tensor, labels: Tensor) -> float:
        """The share of codes (N,...) whose decoded images show their label."""
        found = [self.agrees(self.decode(c), y) for c, y in zip(codes.split(BATCH), labels.split(BATCH), strict=True)]
        return torch.cat(found).double().mean().item()

    def decode(self, codes: Tensor) -> Tensor:
        """(n,...) -> (n,3,S,S) uint8."""
        pixels = self.tokenizer.decode_to_uint8(codes.to(self.tokenizer.device), self.size)
        return pixels.cpu().permute(0, 3, 1, 2)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(n,3,S,S) uint8 -> codes (n,...)."""
        encoding = self.tokenizer.encode(to_unit_range(images.to(self.tokenizer.device)))
        return code_of(encoding, self.tokenizer.code).cpu()

    @torch.no_grad()
    def _guess(self, features: Tensor) -> Tensor:
        return self.probe(features).argmax(dim=1).cpu()

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        """uint8 (n,3,S,S) -> (n,C): all levels, averaged over cells."""
        levels = self.encoder(to_unit_range(images.to(self.tokenizer.device)))  # L x (n,N,C)
        return torch.cat([level.float().mean(dim=1) for level in levels], dim=1)


@dataclasses.dataclass(frozen=True)
class RealImages:
    """What held-out images reach, as they are and decoded from their codes."""

    count: int
    agreement: float
    decoded_agreement: float
    codes: Tensor  # (N,...)


def measure_real(probe: ClassProbe, batches: Iterable[tuple[Tensor, Tensor]]) -> RealImages:
    """``batches`` of crops and labels, as of ``read_batches``."""
    right, decoded, codes = [], [], []
    for images, labels in batches:
        codes.append(probe.encode(images))
        right.append(probe.agrees(images, labels))
        decoded.append(probe.agrees(probe.decode(codes[-1]), labels))
    shares = [torch.cat(found).double().mean().item() for found in (right, decoded)]
    return RealImages(sum(map(len, codes)), *shares, torch.cat(codes))


def positional_unigram(train: CodeCache, labels: Tensor, seed: int) -> Tensor:
    """ids (N,K): every token is that of a random training image of the class, another image for each position.

    Raises DataError: a class has no training image.
    """
    random, views, tokens = np.random.default_rng(seed), train.num_views, train.num_tokens
    classes = train.labels.numpy()
    rows = {label: np.flatnonzero(classes == label) for label in set(labels.tolist())}
    places = np.empty((len(labels), tokens), np.int64)  # of tokens in the flat cache
    for row, label in enumerate(labels.tolist()):
        if not len(rows[label]):
            raise DataError(f"no training image has class {label}")
        donors = random.choice(rows[label], tokens)
        places[row] = (donors * views + random.integers(views, size=tokens)) * tokens + np.arange(tokens)
    flat, order = places.ravel(), places.ravel().argsort()
    ids = np.empty(flat.size, np.int64)
    ids[order] = train.flat_ids()[flat[order]]  # from the front of the file to its end
    return torch.from_numpy(ids.reshape(places.shape))


def largest_overlap(
    ids: Tensor, train: CodeCache, limit: int | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """(N,): the largest share of equal ids at equal positions with any view of any training image.

    Args:
        limit: compares with so many training images at equal distances; None with all.
    """
    tokens, best = ids.shape[1], torch.zeros(len(ids), dtype=torch.int32, device=device)
    ids = ids.to(device, torch.int32)
    chosen = evenly_spaced(len(train) if limit is None else limit, len(train))
    step = max(1, COMPARED // (max(1, min(len(ids), BATCH)) * tokens * train.num_views))
    for start in range(0, len(chosen), step):
        rows = torch.from_numpy(train.rows(chosen[start : start + step]).astype(np.int32)).to(device)  # (m,V,K)
        for first in range(0, len(ids), BATCH):
            equal = ids[first : first + BATCH, None] == rows.flatten(0, 1)  # (n,m*V,K)
            most = equal.sum(dim=2, dtype=torch.int32).amax(dim=1)
            best[first : first + BATCH] = torch.maximum(best[first : first + BATCH], most)
    return best.cpu().float() / tokens
