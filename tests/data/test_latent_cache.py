"""Latent caches: what was written is read, drawn by (seed, epoch, index), and refused where it is damaged."""

import pickle

import numpy as np
import pytest
import torch

from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCache, CodeCacheWriter
from vfmtok.data.latent_cache import LatentCache, open_cache, write_statistics
from vfmtok.errors import DataError

SHAPE = (3, 2, 4)


def metadata(count: int = 20, posterior: str | None = None, dtype: str = "float32") -> dict:
    return {
        "tokenizer_hash": "ab" * 32, "dataset_fingerprint": "cd" * 32, "num_samples": count, "classes": ["a", "b"],
        "views": ["centre", "centre flipped"], "seed": None, "image_size": 32, "precision": "fp32",
        "code": {"latents": list(SHAPE)}, "posterior": posterior, "latent_dtype": dtype,
    }  # fmt: skip


def write(path, **options) -> tuple[np.ndarray, np.ndarray]:
    """A complete cache of random latents; returns them and the labels."""
    fields, rng = metadata(**options), np.random.default_rng(0)
    parts = 2 if fields["posterior"] == "moments" else 1
    latents = rng.normal(size=(fields["num_samples"], 2, parts, *SHAPE))
    latents[:, :, 1:] = 0.1 + np.abs(latents[:, :, 1:])
    labels = rng.integers(0, 2, len(latents))
    assert code_cache.begin(path, fields)
    writer = CodeCacheWriter(path)
    for block in writer.blocks_to_do(8):
        writer.write(int(block[0]), latents[block], labels[block], block == 3)
    writer.finish(statistics=write_statistics(path, writer.written_rows(), "channel"))
    writer.close()
    return latents, labels


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_was_written_is_read(tmp_path, dtype):
    latents, labels = write(tmp_path / "cache", dtype=dtype)
    stored = np.load(tmp_path / "cache/latents.npy")
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, latents.astype(dtype))
    cache = pickle.loads(pickle.dumps(open_cache(tmp_path / "cache")))
    assert len(pickle.dumps(cache)) < 4000  # no latents in it
    assert isinstance(cache, LatentCache) and (len(cache), cache.num_views, cache.code.shape) == (20, 2, SHAPE)
    entry, label = cache[7, 1]
    assert entry.dtype == torch.float32 and np.array_equal(entry, stored[7, 1, 0].astype(np.float32))
    assert label == labels[7] and cache.metadata["replaced_rows"] == [3]
    with pytest.raises(DataError, match=r"is a latent cache \(latents of 3 x 2 x 4\); what is needed here are ids"):
        CodeCache(tmp_path / "cache")


@pytest.mark.parametrize("posterior", [None, "moments"])
def test_batches_are_of_the_views_drawn_by_seed_epoch_and_index(tmp_path, posterior):
    latents, labels = write(tmp_path / "cache", posterior=posterior)
    cache = LatentCache(tmp_path / "cache")
    indices, epochs = np.array([4, 19, 4, 0]), np.array([0, 0, 1, 5])
    found, found_labels = cache.batch(indices, 9, epochs)
    assert found.shape == ((4, 2, *SHAPE) if posterior else (4, *SHAPE)) and found.dtype == torch.float32
    for row, (index, epoch) in enumerate(zip(indices, epochs, strict=True)):
        expected = latents[index, cache.view_for(9, epoch, index)].astype(np.float32)
        assert np.array_equal(found[row], expected if posterior else expected[0])
    assert found_labels.tolist() == labels[indices].tolist()


def test_statistics_are_read_with_it(tmp_path):
    latents, _ = write(tmp_path / "cache", posterior="moments")
    cache, means, std = LatentCache(tmp_path / "cache"), latents[:, :, 0], latents[:, :, 1]
    variance = means.var((0, 1, 3, 4), ddof=1) + (std**2).mean((0, 1, 3, 4))
    np.testing.assert_allclose(cache.statistics.std.flatten(), np.sqrt(variance), rtol=1e-6)
    assert cache.metadata["statistics"] == {"per": "channel", "count": 40}
    cache.measure_again("position")
    again = LatentCache(tmp_path / "cache")
    np.testing.assert_allclose(again.statistics.mean, means.mean((0, 1)), rtol=1e-5, atol=1e-7)
    assert again.metadata == {**cache.metadata, "statistics": {"per": "position", "count": 40}}


def test_chunks_of_the_statistics_do_not_matter(tmp_path, monkeypatch):
    write(tmp_path / "whole")
    monkeypatch.setattr("vfmtok.data.latent_cache._CHUNK", 3 * 2 * 24)
    write(tmp_path / "chunks")
    whole, chunks = (LatentCache(tmp_path / name).statistics for name in ("whole", "chunks"))
    torch.testing.assert_close(chunks.mean, whole.mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(chunks.std, whole.std, rtol=1e-6, atol=0)


def test_what_is_not_finite_is_not_written(tmp_path):
    code_cache.begin(tmp_path / "cache", metadata(dtype="float16"))
    writer = CodeCacheWriter(tmp_path / "cache")
    for value, message in ((np.nan, "record 5 is not finite"), (1e5, "record 5 is beyond the range of float16")):
        latents = np.zeros((2, 2, 1, *SHAPE))
        latents[1, 0, 0, 2, 1, 3] = value
        with pytest.raises(DataError, match=message):
            writer.write(4, latents, np.zeros(2), np.zeros(2, bool))
    assert not writer.progress().any()


def test_damage_is_noticed_on_opening(tmp_path):
    path = tmp_path / "cache"
    write(path)
    text = (path / "cache.json").read_text()
    for old, new, message in (
        ('"latent_dtype": "float32"', '"latent_dtype": "int8"', "says latents are int8"),
        ('"posterior": null', '"posterior": "moments"', r"its cache.json says \(20, 2, 2, 3, 2, 4\)"),
        ('"posterior": null,', "", "lacks 'posterior'"),
    ):
        assert old in text
        (path / "cache.json").write_text(text.replace(old, new))
        with pytest.raises(DataError, match=message):
            LatentCache(path)
    (path / "cache.json").write_text(text)
    with open(path / "latents.npy", "r+b") as file:
        file.truncate(300)
    with pytest.raises(DataError, match=r"cannot read .*latents.npy"):
        LatentCache(path)


def test_ids_and_latents_are_not_taken_for_each_other(tmp_path):
    write(tmp_path / "cache")
    ids = {**metadata(), "num_tokens": 4, "codebook_size": 8}
    del ids["code"]
    with pytest.raises(DataError, match="holds a latent cache with another num_tokens"):
        code_cache.begin(tmp_path / "cache", ids)
