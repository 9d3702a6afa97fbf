"""Do generated images look like their classes, and are they new? A linear probe and the training set judge.

    python benchmarks/class_agreement.py --gpt RUN --vq-ckpt RUN --data DATA --code-path CACHE --val-code-path CACHE

The judge is a linear probe on the frozen encoder (every level of it, averaged over cells), trained on the real training
images. It is no quality score: more guidance raises agreement and lowers variety. Beside it are printed what real
held-out images reach, as they are and decoded from their ids, and the floor: ids drawn position by position at the
frequencies of the class. Overlap is the share of equal ids with the most similar training image, over all its views.

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
from vfmtok.data.code_cache import CodeCache
from vfmtok.data.dataset_folder import open_splits
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.evaluation.linear_probe import ProbeRecipe, linear_probe
from vfmtok.hub import pretrained
from vfmtok.tokenizer.encoder import Encoder
from vfmtok.training.sample import draw_ids
from vfmtok.training.validation import read_samples

# AdamW at MAE's schedule: LARS is made for batches larger than this data set.
PROBE = ProbeRecipe(optimizer="adamw", base_lr=1e-2, batch=256, epochs=40, warmup_epochs=4, weight_decay=1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpt", required=True, help="a run's folder")
    parser.add_argument("--vq-ckpt", required=True, help="the tokenizer")
    parser.add_argument("--transformer-config-file", help="its configuration, if its weights lack it")
    parser.add_argument("--data", required=True, help="the folder of `vfmtok prepare`")
    parser.add_argument("--code-path", required=True, help="the token cache of the training images")
    parser.add_argument("--val-code-path", required=True, help="that of the held-out images")
    parser.add_argument("--per-class", type=int, default=60)
    parser.add_argument("--cfg-scales", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="of the encoder, for the probe")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    world = distributed.start()
    tokenizer = pretrained.load_tokenizer(args.vq_ckpt, args.transformer_config_file).to(world.device)
    gpt = pretrained.load_gpt(args.gpt).to(world.device)
    train, val = CodeCache(args.code_path), CodeCache(args.val_code_path)
    config = dataclasses.replace(tokenizer.config.encoder, levels=tuple(args.levels), weights_sha256=None)
    judge = Judge(Encoder(config).to(world.device).eval(), tokenizer, Path(args.data), gpt.config.num_classes)

    count = args.per_class * gpt.config.num_classes
    labels = torch.arange(gpt.config.num_classes).repeat_interleave(args.per_class)  # (N,)
    val_ids = torch.stack([val[row, 0][0] for row in range(len(val))])
    print(f"judge: linear probe on levels {args.levels} of {config.name}, {len(judge.labels)} training images")
    print(f"{'held-out images':40s} {_share(judge.of_real(), len(judge.val_labels))}")
    sets = {"held-out images, decoded": (val_ids, val.labels)}
    sets["floor: class-wise positional unigram"] = (positional_unigram(train, labels, args.seed), labels)
    for scale in args.cfg_scales:
        ids = draw_ids(gpt, labels, 60, world, cfg_scale=scale, seed=args.seed)
        sets[f"generated, guidance {scale:g}"] = (ids, labels)
    for name, (ids, wanted) in sets.items():
        overlap = largest_overlap(ids, train)
        print(
            f"{name:40s} {_share(judge.of_ids(ids, wanted), len(wanted))}; "
            f"overlap with a training image: mean {overlap.mean():.3f}, largest {overlap.max():.3f}"
        )
    print(f"({count} images a setting, {args.per_class} a class, seed {args.seed}; +- is the binomial standard error)")


def _share(accuracy: float, count: int) -> str:
    return f"agreement {accuracy:.3f} +- {math.sqrt(accuracy * (1 - accuracy) / count):.3f} of {count}"


class Judge:
    """The probe. It is trained anew, from the same seed and so alike, for every set it judges."""

    def __init__(self, encoder: nn.Module, tokenizer: nn.Module, data: Path, num_classes: int):
        self.encoder, self.tokenizer, self.num_classes = encoder, tokenizer, num_classes
        self.size, self.device = tokenizer.config.image_size, tokenizer.to_latents.weight.device
        splits = open_splits(data)
        self.features, self.labels = self._real(splits["train"])
        self.val_features, self.val_labels = self._real(splits["val"])

    def of_real(self) -> float:
        return self._accuracy(self.val_features, self.val_labels)

    def of_ids(self, ids: Tensor, labels: Tensor) -> float:
        parts = ids.to(self.device).split(64)
        pixels = [self.tokenizer.decode_to_uint8(part, self.size).permute(0, 3, 1, 2) for part in parts]
        return self._accuracy(self._features(torch.cat(pixels)), labels)

    def _accuracy(self, features: Tensor, labels: Tensor) -> float:
        return linear_probe(self.features, self.labels, features, labels, self.num_classes, PROBE).top1

    def _real(self, records) -> tuple[Tensor, Tensor]:
        images, labels = read_samples(records, EvaluationCrop(self.size), np.arange(len(records)), 0)
        return self._features(images), labels

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        """uint8 (N,3,S,S) -> (N,C): all levels, averaged over cells."""
        found = []
        for part in images.split(64):
            levels = self.encoder(to_unit_range(part.to(self.device)))  # L x (B,N,C)
            found.append(torch.cat([level.float().mean(dim=1) for level in levels], dim=1))
        return torch.cat(found)


def positional_unigram(train: CodeCache, labels: Tensor, seed: int) -> Tensor:
    """ids (N,K): every token is that of a random training image of the class, another image for each position."""
    random = np.random.default_rng(seed)
    rows = {label: np.flatnonzero(train.labels.numpy() == label) for label in set(labels.tolist())}
    ids = torch.empty(len(labels), train.num_tokens, dtype=torch.int64)
    for row, label in enumerate(labels.tolist()):
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


if __name__ == "__main__":
    main()
