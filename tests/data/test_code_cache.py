import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCache, CodeCacheWriter
from vfmtok.errors import DataError


def metadata(count: int = 50, views: int = 3, tokens: int = 4, codebook_size: int = 500) -> dict:
    return {
        "tokenizer_hash": "ab" * 32,
        "dataset_fingerprint": "cd" * 32,
        "num_samples": count,
        "classes": ["a", "b"],
        "views": [f"view {i}" for i in range(views)],
        "seed": None,
        "image_size": 32,
        "num_tokens": tokens,
        "codebook_size": codebook_size,
        "precision": "fp32",
    }


def write(path, **options) -> tuple[np.ndarray, np.ndarray]:
    """A complete cache of random ids; returns them and the labels."""
    fields = metadata(**options)
    shape = (fields["num_samples"], len(fields["views"]), fields["num_tokens"])
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, fields["codebook_size"], shape), rng.integers(0, 2, shape[0])
    assert code_cache.begin(path, fields)
    writer = CodeCacheWriter(path)
    for block in writer.blocks_to_do(8):
        writer.write(int(block[0]), ids[block], labels[block], block == 3)
    writer.finish(note="kept")
    writer.close()
    return ids, labels


@pytest.mark.parametrize("size, dtype", [(500, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_what_was_written_is_read(tmp_path, size, dtype):
    ids, labels = write(tmp_path / "cache", codebook_size=size)
    stored = np.load(tmp_path / "cache" / "ids.npy")  # a plain array for anybody's program
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, ids)
    cache = CodeCache(tmp_path / "cache")
    assert (len(cache), cache.num_views, cache.num_tokens, cache.codebook_size) == (50, 3, 4, size)
    assert cache.metadata["note"] == "kept" and cache.metadata["replaced_rows"] == [3]
    entry, label = cache[7, 2]
    assert entry.dtype == torch.int64 and entry.tolist() == ids[7, 2].tolist() and label == labels[7]
    assert not (tmp_path / "cache" / "progress.bin").exists()


def test_batches_draw_views_by_seed_epoch_and_index(tmp_path):
    ids, labels = write(tmp_path / "cache")
    cache = pickle.loads(pickle.dumps(CodeCache(tmp_path / "cache")))
    assert len(pickle.dumps(cache)) < 4000  # no ids in it
    indices = np.array([4, 49, 4, 0])
    for epochs in ([0, 0, 0, 0], [1, 1, 2, 2], [3, 4, 5, 6]):
        found, found_labels = cache.batch(indices, seed=9, epochs=epochs)
        for row, (epoch, index) in enumerate(zip(epochs, indices, strict=True)):
            assert found[row].tolist() == ids[index, cache.view_for(9, epoch, index)].tolist()
        assert found_labels.tolist() == labels[indices].tolist()
    drawn = np.array([[cache.view_for(9, epoch, index) for epoch in range(60)] for index in range(50)])
    np.testing.assert_allclose(np.bincount(drawn.ravel()) / drawn.size, 1 / 3, atol=0.03)
    assert (drawn[0] != drawn[1]).any() and (drawn[:, 0] != drawn[:, 1]).any()


def test_an_unfinished_cache_can_be_continued_but_not_read(tmp_path):
    path, fields = tmp_path / "cache", metadata(count=20)
    code_cache.begin(path, fields)
    writer = CodeCacheWriter(path)
    rows = np.arange(4)
    writer.write(4, np.ones((4, 3, 4), int), rows, rows < 0)
    with pytest.raises(DataError, match="is not complete: run the `vfmtok codes`"):
        CodeCache(path)
    with pytest.raises(DataError, match=r"16 of 20 rows .* are not written"):
        writer.finish()
    assert code_cache.begin(path, fields)  # does not start again from nothing:
    assert [block.tolist() for block in CodeCacheWriter(path).blocks_to_do(4)] == [
        [0, 1, 2, 3], [8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19],
    ]  # fmt: skip
    assert [block[0] for block in CodeCacheWriter(path).blocks_to_do(6)] == [0, 6, 12, 18]


@pytest.mark.parametrize("name", ["ids.npy", "labels.npy", "progress.bin"])
@pytest.mark.parametrize("size", [0, 9])
def test_an_unfinished_cache_that_was_cut_is_one_line(tmp_path, name, size):
    """Rows beyond the end of progress.bin are not taken for done."""
    path = tmp_path / "cache"
    code_cache.begin(path, metadata(count=20))
    with open(path / name, "r+b") as file:
        file.truncate(size)
    with pytest.raises(DataError, match=name):
        CodeCacheWriter(path).blocks_to_do(4)


def test_another_use_of_the_folder_is_refused(tmp_path):
    write(tmp_path / "cache")
    assert not code_cache.begin(tmp_path / "cache", metadata())
    for key, value in (("tokenizer_hash", "ef" * 32), ("views", ["other"]), ("precision", "bf16")):
        with pytest.raises(DataError, match=f"holds a token cache with another {key}"):
            code_cache.begin(tmp_path / "cache", {**metadata(), key: value})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"is not empty \(it has thesis.tex\)"):
        code_cache.begin(tmp_path / "mine", metadata())


def test_a_cache_of_another_tokenizer_is_an_error(tmp_path):
    write(tmp_path / "cache")
    cache = CodeCache(tmp_path / "cache")
    code_cache.check_tokenizer(cache, "ab" * 32)
    with pytest.raises(DataError, match="was made by another tokenizer"):
        code_cache.check_tokenizer(cache, "ba" * 32)


def test_bad_records_are_counted_over_the_whole_cache(tmp_path):
    for count, allowed in ((50, 1), (300, 3)):
        path = tmp_path / str(count)
        code_cache.begin(path, metadata(count=count))
        for row in range(count):  # each from another process
            if row == allowed:
                CodeCacheWriter(path).check_replaced()
            writer = CodeCacheWriter(path)
            writer.write(row, np.ones((1, 3, 4), int), np.zeros(1), np.array([row <= allowed]))
            writer.close()
        for _ in range(2):
            with pytest.raises(DataError, match=rf"{allowed + 1} of the {count} records .* more than 1%"):
                CodeCacheWriter(path).finish()
        assert (path / "progress.bin").exists()


def test_damage_is_noticed_on_opening(tmp_path):
    path = tmp_path / "cache"
    with pytest.raises(DataError, match="no token cache at"):
        CodeCache(path)
    write(path)
    with open(path / "ids.npy", "r+b") as file:
        file.truncate(300)
    with pytest.raises(DataError, match=r"cannot read .*ids.npy"):
        CodeCache(path)
    np.save(path / "ids.npy", np.zeros((50, 3, 5), np.uint16))
    with pytest.raises(DataError, match=r"its cache.json says \(50, 3, 4\)"):
        CodeCache(path)
    (path / "cache.json").write_text('{"version": 1')
    with pytest.raises(DataError, match="damaged"):
        CodeCache(path)


def test_a_full_disk_shows_before_the_work(tmp_path):
    """A limit on file sizes stands in for the disk: the array is claimed at once, not as it fills."""
    program = f"""
import resource
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_code_cache import metadata
from vfmtok.data import code_cache
from vfmtok.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    code_cache.begin({str(tmp_path / "cache")!r}, metadata(count=100_000))
except DataError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused: cannot write") and "too large" in done.stdout
    assert code_cache.begin(tmp_path / "cache", metadata())  # nothing is in the way of trying again
