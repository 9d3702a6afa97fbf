"""The judge of generated images, its floor, and the overlap with training images, beside loops."""

import numpy as np
import pytest
import torch

from vfmtok.commands.agreement import PROBE, Judge, largest_overlap, open_judges_encoder, positional_unigram
from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCache, CodeCacheWriter
from vfmtok.data.dataset_folder import open_splits
from vfmtok.metrics.probe import linear_probe

TOKENS, CODES, CLASSES, VIEWS = 16, 32, 3, 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """30 images of two views, made up: every class has its own eight codes."""
    path, random = tmp_path_factory.mktemp("codes") / "train", np.random.default_rng(0)
    facts = {"tokenizer_hash": "ab" * 32, "dataset": "made up", "dataset_fingerprint": "f", "num_samples": 30}
    facts |= {"classes": ["a", "b", "c"], "views": ["0", "1"], "seed": None, "image_size": 32, "num_tokens": TOKENS}
    code_cache.begin(path, {**facts, "grid": 4, "codebook_size": CODES, "precision": "fp32"})
    labels = np.arange(30) % CLASSES
    ids = labels[:, None, None] * 8 + random.integers(0, 8, (30, VIEWS, TOKENS))
    writer = CodeCacheWriter(path)
    writer.write(0, ids, labels, np.zeros(30, bool))
    writer.finish()
    writer.close()
    return CodeCache(path)


def test_the_floor_has_the_frequencies_of_each_class_and_position(cache):
    labels = torch.arange(CLASSES).repeat_interleave(4000)
    ids = positional_unigram(cache, labels, seed=1)
    for label in range(CLASSES):
        for position in (0, 7, 15):
            seen = [int(cache[i, v][0][position]) for i in range(30) for v in range(VIEWS) if cache.labels[i] == label]
            wanted = np.bincount(seen, minlength=CODES) / len(seen)
            found = np.bincount(ids[labels == label, position], minlength=CODES) / 4000
            np.testing.assert_allclose(found, wanted, atol=4.5 * np.sqrt(0.25 / 4000))
    neighbours = [(int(row[0]), int(row[1])) for row in ids[:4000]]
    assert len(set(neighbours)) > 20  # of 64: drawn apart; the images have 20 pairs


def test_overlap_is_that_of_a_loop(cache):
    ids = torch.randint(0, CODES, (5, TOKENS), generator=torch.Generator().manual_seed(0))
    ids[3] = cache[17, 1][0]
    wanted = [
        max(sum(int(a == b) for a, b in zip(row, cache[i, v][0], strict=True)) for i in range(30) for v in range(VIEWS))
        for row in ids
    ]
    assert (largest_overlap(ids, cache) * TOKENS).tolist() == pytest.approx(wanted)
    assert wanted[3] == TOKENS


def test_the_judge_is_a_linear_probe(sample_set, tiny_tokenizer):
    """Its verdict on held-out images is what ``linear_probe`` measures on the same features."""
    tokenizer, splits = tiny_tokenizer().eval(), open_splits(sample_set)
    encoder = open_judges_encoder(tokenizer)
    assert encoder.levels == (1, 2, 3, 4, 5, 6)  # the whole of a small encoder, not only what the tokenizer reads
    judge = Judge(encoder, tokenizer, splits["train"], num_classes=9)
    (images, labels), (train_images, train_labels) = judge.read(splits["val"]), judge.read(splits["train"])
    features = [torch.cat([x.mean(1) for x in encoder(part / 127.5 - 1)], 1) for part in (train_images, images)]
    wanted = linear_probe(features[0], train_labels, features[1], labels, 9, PROBE).top1
    assert judge.of_images(images, labels) == pytest.approx(wanted, abs=2 / len(labels))  # other batches
    assert judge.of_images(images, (labels + 1) % 9) < judge.of_images(images, labels)
