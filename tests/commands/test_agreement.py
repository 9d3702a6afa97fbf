"""The class probe of generated images, its floor, and the overlap with training images, beside loops."""

import numpy as np
import pytest
import torch

from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCache, CodeCacheWriter
from vfmtok.data.dataset_folder import open_splits
from vfmtok.encoders.config import EncoderConfig
from vfmtok.errors import ConfigError
from vfmtok.evaluation.agreement import (
    PROBE,
    ClassProbe,
    largest_overlap,
    measure_real,
    open_probe_encoder,
    positional_unigram,
    read_batches,
)
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


def test_the_floor_is_that_of_version_0_1(cache):
    """Which read the cache token by token, in this order of chance."""
    labels, random = torch.tensor([2, 0, 1, 1]), np.random.default_rng(3)
    wanted = torch.empty(4, TOKENS, dtype=torch.int64)
    for row, label in enumerate(labels.tolist()):
        donors = random.choice(np.flatnonzero(cache.labels.numpy() == label), TOKENS)
        for token, donor in enumerate(donors):
            wanted[row, token] = cache[donor, random.integers(VIEWS)][0][token]
    assert torch.equal(positional_unigram(cache, labels, 3), wanted)


def test_overlap_with_some_images_is_that_with_those(cache, monkeypatch):
    ids = torch.stack([cache[i, 1][0] for i in (0, 7, 29)])  # all of the five
    assert largest_overlap(ids, cache, 5).tolist() == [1, 1, 1]
    ids = torch.stack([cache[i, 0][0] for i in (1, 8)])
    found = largest_overlap(ids, cache, 5)
    wanted = [
        max((row == cache[i, v][0]).float().mean().item() for i in (0, 7, 14, 22, 29) for v in range(VIEWS))
        for row in ids
    ]
    assert found.tolist() == pytest.approx(wanted) and (found < 1).all()
    monkeypatch.setattr("vfmtok.evaluation.agreement.COMPARED", 1)  # one training image at a time
    assert torch.equal(largest_overlap(ids, cache, 5), found)


def test_the_probe_is_a_linear_probe(sample_set, tiny_tokenizer):
    """Its verdict on held-out images is what ``linear_probe`` measures on the same features."""
    tokenizer, splits = tiny_tokenizer().eval(), open_splits(sample_set)
    encoder = open_probe_encoder(tokenizer)
    assert encoder.levels == (1, 2, 3, 4, 5, 6)  # the whole of a small encoder, not only what the tokenizer reads
    probe = ClassProbe(encoder, tokenizer, splits["train"], num_classes=9)
    sets = [[torch.cat(column) for column in zip(*read_batches(splits[s], 32), strict=True)] for s in ("train", "val")]
    features = [torch.cat([x.mean(1) for x in encoder(images / 127.5 - 1)], 1) for images, _ in sets]
    (_, train_labels), (images, labels) = sets
    wanted = linear_probe(features[0], train_labels, features[1], labels, 9, PROBE).top1
    found = measure_real(probe, [(images, labels)])
    assert found.agreement == pytest.approx(wanted, abs=2 / len(labels))  # other batches
    assert probe.agrees(images, (labels + 1) % 9).double().mean() < found.agreement
    assert found.decoded_agreement == probe.agreement_of_codes(found.codes, labels)
    few = ClassProbe(encoder, tokenizer, splits["train"], 9, limit=20)
    assert few.count == 20 and found.count == len(labels) == len(splits["val"])


def test_tokenizers_with_different_encoders_are_measured_by_one(tiny_tokenizer):
    """Whose own encoder is trained has no frozen features; an encoder that is named reads all levels of a small one."""
    trained = tiny_tokenizer("encoder.frozen=false")
    with pytest.raises(ConfigError, match="name another encoder"):
        open_probe_encoder(trained)
    named = EncoderConfig(name="test_vit", image_size=64, weights="random")
    encoder = open_probe_encoder(trained, other=named)
    assert encoder.levels == (1, 2, 3, 4, 5, 6) and encoder.config.frozen
    assert open_probe_encoder(trained, [2], named).levels == (2,)
    images = torch.rand(1, 3, 64, 64)
    own = open_probe_encoder(tiny_tokenizer(), other=named)
    assert all(torch.equal(a, b) for a, b in zip(encoder(images), own(images), strict=True))
