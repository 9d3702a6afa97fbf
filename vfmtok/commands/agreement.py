"""`vfmtok agreement`: do generated images look like their classes, and are they new?

The judge is a linear probe on the frozen encoder of the tokenizer (its levels, averaged over cells), trained on real
training images. It is no measure of quality: more guidance raises agreement and lowers variety. Beside it stand what
real held-out images reach, as they are and decoded from their ids, and the floor: ids drawn position by position at
the frequencies of the class. Overlap is the share of equal ids with the most similar training image in any view.

Shapes: N images, K tokens, C channels, Y classes, S side.
"""

import argparse
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vfmtok import distributed
from vfmtok.commands.models import add_models, open_models
from vfmtok.data.code_cache import CodeCache, check_tokenizer
from vfmtok.data.dataset_folder import open_splits
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.encoders.vfm import Encoder
from vfmtok.errors import ConfigError, DataError
from vfmtok.evaluation.results import Number, as_lines, as_tree
from vfmtok.files import write_json
from vfmtok.generators.drawing import draw_codes
from vfmtok.metrics.probe import ProbeRecipe, train_probe
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.training.validation import read_samples
from vfmtok.weights.hashing import tokenizer_hash

# AdamW at MAE's schedule: LARS is made for batches larger than a small data set.
PROBE = ProbeRecipe(optimizer="adamw", base_lr=1e-2, batch=256, epochs=40, warmup_epochs=4, weight_decay=1e-2)
BATCH = 64  # images at a time through tokenizer and encoder
PYRAMID = 8  # an encoder of at most so many levels is judged by all of them

# --------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Generate images of every class and let a linear probe on the frozen encoder, trained on the real training "
        "images, say which class they show. Prints the share that agrees, beside what real images reach and beside "
        "a floor, and the largest overlap of ids with a training image."
    )
    add_models(parser)
    parser.add_argument("--data", required=True, help="the folder of `vfmtok prepare`, with a validation split")
    parser.add_argument("--code-path", required=True, metavar="CACHE", help="the token cache of its training images")
    parser.add_argument("--per-class", type=int, default=60, metavar="N", help="generated images (default 60)")
    parser.add_argument("--cfg-scales", type=float, nargs="+", default=[1.0, 2.0], metavar="S", help="default 1 2")
    parser.add_argument(
        "--levels", type=int, nargs="+", metavar="L", help="of the encoder (default: all of a pyramid, else those read)"
    )
    parser.add_argument("--batch-size", type=int, default=60, metavar="N", help="images generated at a time")
    parser.add_argument("--seed", "--global-seed", type=int, default=0)
    parser.add_argument("--out", default="agreement", metavar="FOLDER", help="for results.json (default agreement)")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    if min(args.per_class, args.batch_size) < 1:
        raise ConfigError("--per-class and --batch-size must be positive")
    world = distributed.World(0, 1, distributed.start().device)
    tokenizer, gpt, _ = open_models(args, world.device)
    train = CodeCache(Path(args.code_path).expanduser())
    check_tokenizer(train, tokenizer_hash(tokenizer))
    splits = open_splits(Path(args.data).expanduser())
    if splits.keys() != {"train", "val"}:
        raise DataError(f"{args.data} needs a training and a validation split: the judge learns from one")
    num_classes = gpt.config.num_classes
    if num_classes < 2:
        raise DataError("there is one class: nothing for images to agree with")

    encoder = open_judges_encoder(tokenizer, args.levels).to(world.device)
    judge = Judge(encoder, tokenizer, splits["train"], num_classes)
    compared = f"equal ids with the most similar of {len(train):,} training images x {train.num_views} views"
    about = f"linear probe on levels {list(encoder.levels)} of {encoder.config.name}, trained on {len(judge):,} images"
    labels = torch.arange(num_classes).repeat_interleave(args.per_class)  # (N,)
    real, real_labels = judge.read(splits["val"])
    numbers = [_number("agreement of real held-out images", judge.of_images(real, real_labels), len(real), about)]
    real_ids = judge.encode(real)
    decoded = judge.of_ids(real_ids, real_labels)
    numbers.append(_number("agreement of held-out images, decoded from ids", decoded, len(real), about))
    overlap = largest_overlap(real_ids, train).mean().item()
    numbers.append(Number("mean token overlap of held-out images", overlap, compared))
    floor = judge.of_ids(positional_unigram(train, labels, args.seed), labels)
    floored = "ids drawn position by position at the frequencies of the class; " + about
    numbers.append(_number("agreement of the floor", floor, len(labels), floored))
    for scale in args.cfg_scales:
        ids = draw_codes(gpt, labels, args.batch_size, world, cfg_scale=scale, seed=args.seed)
        name = "no CFG" if scale == 1 else f"CFG {scale:g}"
        numbers.append(_number(f"agreement, {name}", judge.of_ids(ids, labels), len(labels), about))
        overlap = largest_overlap(ids, train)
        numbers.append(Number(f"largest token overlap, {name}", overlap.max().item(), compared))
        numbers.append(Number(f"mean token overlap, {name}", overlap.mean().item(), compared))
    notes = [f"{args.per_class} images a class, temperature 1, all tokens allowed, seed {args.seed}"]
    results = {"numbers": as_tree(numbers), "warnings": [], "notes": notes}
    file = Path(args.out).expanduser() / "results.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror}") from None
    write_json(file, results)
    print("\n".join(as_lines(f"{args.gpt}: {file}", results)))


def _number(name: str, share: float, count: int, protocol: str) -> Number:
    error = math.sqrt(share * (1 - share) / count)
    return Number(name, share, f"of {count:,} images, standard error {error:.3f}; {protocol}")


# --------------------------------------------------------------------------------------
# The judge
# --------------------------------------------------------------------------------------


def open_judges_encoder(tokenizer: Tokenizer, levels: list[int] | None = None) -> Encoder:
    """The tokenizer's frozen encoder with its published weights, reading these levels. Raises VFMTokError."""
    config = tokenizer.config.encoder
    if levels is None:
        available = tokenizer.encoder.available_levels
        levels = config.levels if available > PYRAMID else range(1, available + 1)
    return Encoder(dataclasses.replace(config, levels=tuple(levels))).eval()


class Judge:
    """A linear probe on an encoder's features: which class does an image show?"""

    def __init__(self, encoder: nn.Module, tokenizer: Tokenizer, train: RecordDataset, num_classes: int):
        self.encoder, self.tokenizer, self.size = encoder, tokenizer, tokenizer.config.image_size
        images, labels = self.read(train)
        self.count = len(images)
        self.probe = train_probe(self._features(images), labels, num_classes, PROBE)

    def __len__(self) -> int:
        return self.count

    def read(self, records: RecordDataset) -> tuple[Tensor, Tensor]:
        """images (N,3,S,S) uint8 by the evaluation crop, labels (N,)."""
        return read_samples(records, EvaluationCrop(self.size), np.arange(len(records)), 0)

    @torch.no_grad()
    def of_images(self, images: Tensor, labels: Tensor) -> float:
        """The share of images (N,3,S,S) uint8 whose likeliest class is their label."""
        guesses = self.probe(self._features(images)).argmax(dim=1).cpu()  # (N,)
        return (guesses == labels).double().mean().item()

    def of_ids(self, ids: Tensor, labels: Tensor) -> float:
        """The same of the images that ids (N,K) decode to."""
        device = self.tokenizer.device
        pixels = [self.tokenizer.decode_to_uint8(part.to(device), self.size).cpu() for part in ids.split(BATCH)]
        return self.of_images(torch.cat(pixels).permute(0, 3, 1, 2), labels)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(N,3,S,S) uint8 -> ids (N,K)."""
        device = self.tokenizer.device
        found = [self.tokenizer.encode(to_unit_range(part.to(device))).ids.cpu() for part in images.split(BATCH)]
        return torch.cat(found)

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        """uint8 (N,3,S,S) -> (N,C): all levels, averaged over cells."""
        found = []
        for part in images.split(BATCH):
            levels = self.encoder(to_unit_range(part.to(self.tokenizer.device)))  # L x (B,N,C)
            found.append(torch.cat([level.float().mean(dim=1) for level in levels], dim=1))
        return torch.cat(found)


# --------------------------------------------------------------------------------------
# What to compare with
# --------------------------------------------------------------------------------------


def positional_unigram(train: CodeCache, labels: Tensor, seed: int) -> Tensor:
    """ids (N,K): every token is that of a random training image of the class, another image for each position."""
    random = np.random.default_rng(seed)
    rows = {label: np.flatnonzero(train.labels.numpy() == label) for label in set(labels.tolist())}
    ids = torch.empty(len(labels), train.num_tokens, dtype=torch.int64)
    for row, label in enumerate(labels.tolist()):
        if not len(rows[label]):
            raise DataError(f"no training image has class {label}")
        for token, donor in enumerate(random.choice(rows[label], train.num_tokens)):
            ids[row, token] = train[donor, random.integers(train.num_views)][0][token]
    return ids


def largest_overlap(ids: Tensor, train: CodeCache) -> Tensor:
    """(N,): the largest share of equal ids at equal positions with any view of any training image."""
    best = torch.zeros(len(ids))
    for row in range(len(train)):
        for view in range(train.num_views):
            best = torch.maximum(best, (ids == train[row, view][0]).float().mean(dim=1))
    return best
