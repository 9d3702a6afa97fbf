"""`vfmtok decode`: caches and shards of latents as images and labels, shared among processes and continued."""

import subprocess
import sys
from pathlib import Path

import continuous_family
import numpy as np
import pytest
import safetensors.torch
import torch
from codes_place import ENVIRONMENT, in_one_thread
from photographs import jpeg, photographs
from PIL import Image

import vfmtok
from vfmtok import cli
from vfmtok.data.latent_cache import LatentCache
from vfmtok.data.records import Record, write_records
from vfmtok.evaluation import decoding

FAMILIES = continuous_family.FAMILIES

COUNT = 11


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A variational tokenizer, a cache of moments of images and their mirror images, and shards of samples."""
    folder = tmp_path_factory.mktemp("decode")
    images = [photo.resize((24, 20)) for photo in photographs()]
    records = [Record(jpeg(images[i % 8].rotate(9 * i)), i % 3, f"{i}.jpg") for i in range(COUNT)]
    write_records(folder / "lmdb", records, classes=["a", "b", "c"])
    vfmtok.save_pretrained(continuous_family.tokenizer(True), folder / "vae")
    command = ["codes", str(folder / "lmdb"), str(folder / "cache"), "--vq-ckpt", str(folder / "vae")]
    assert cli.main([*command, "--posterior", "moments", "--num-workers", "0"]) == 0
    latents = torch.randn(COUNT, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    (folder / "shards").mkdir()
    for number, rows in enumerate((slice(0, 6), slice(6, COUNT))):
        shard = {"latents": latents[rows].clone(), "labels": torch.arange(COUNT, dtype=torch.int32)[rows].clone() % 4}
        safetensors.torch.save_file(shard, folder / f"shards/samples_rank00_shard{number:03d}.safetensors")
    torch.save(latents, folder / "latents.pt")
    return folder


def decode(place: Path, source: str, out: Path, *more: str) -> int:
    return cli.main(
        ["decode", str(place / source), str(out), "--vq-ckpt", str(place / "vae"), "--batch-size", "3", *more]
    )


def arrays(out: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(out / "samples.npz") as archive:
        return archive["arr_0"], archive["labels"]


def expected(latents: torch.Tensor, size: int = 16) -> np.ndarray:
    return continuous_family.tokenizer(True).decode_to_uint8(latents, size).numpy()


@pytest.mark.parametrize("view", ["centre", "centre flipped"])
def test_a_view_of_a_cache(place, tmp_path, capsys, view):
    assert decode(place, "cache", tmp_path / "out", "--view", view, "--images", "--image-size-eval", "20") == 0
    cache = LatentCache(place / "cache")
    means = torch.stack([cache[row, cache.metadata["views"].index(view)][0][0] for row in range(COUNT)])
    images, labels = arrays(tmp_path / "out")
    assert np.array_equal(labels, cache.labels) and np.abs(images.astype(int) - expected(means, 20)).max() <= 1
    for row in range(COUNT):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"out/images/{row:06d}.png")), images[row])
    assert "11 images of 20 px" in capsys.readouterr().out


def test_shards_of_samples(place, tmp_path):
    assert decode(place, "shards", tmp_path / "out") == 0
    images, labels = arrays(tmp_path / "out")
    assert labels.tolist() == [row % 4 for row in range(COUNT)]
    assert np.abs(images.astype(int) - expected(torch.load(place / "latents.pt"))).max() <= 1


def test_ids_decode_as_reconstruct_does(tmp_path):
    for own in in_one_thread(tmp_path, 5):
        assert cli.main(own.arguments(tmp_path / "cache", "--views", "flip")) == 0
        flags = [*own.arguments(tmp_path / "out")[3:9], "--batch-size", "2"]
        assert cli.main(["decode", str(tmp_path / "cache"), str(tmp_path / "out"), *flags]) == 0
        ids = torch.from_numpy(np.load(tmp_path / "cache/ids.npy")[:, 0].astype(np.int64))
        whole = own.tokenizer.decode_to_uint8(ids, 32).numpy()
        assert np.abs(arrays(tmp_path / "out")[0].astype(int) - whole).max() <= 1


def test_what_was_interrupted_is_continued(place, tmp_path, monkeypatch):
    out, blocks = tmp_path / "out", []
    honest = decoding.jobs.Blocks.write

    def write(store, rows, found):
        if len(blocks) == 2:
            raise KeyboardInterrupt
        blocks.append(rows)
        honest(store, rows, found)

    with monkeypatch.context() as patch:
        patch.setattr(decoding.jobs.Blocks, "write", write)
        assert decode(place, "shards", out) == 130
    assert len(list((out / "parts").iterdir())) == 2 and not (out / "samples.npz").exists()
    read = []
    monkeypatch.setattr(
        decoding.StoredShards,
        "read",
        lambda codes, rows, own=decoding.StoredShards.read: read.extend(rows) or own(codes, rows),
    )
    assert decode(place, "shards", out) == 0
    assert read == list(range(6, COUNT))  # what was done is not decoded again
    assert decode(place, "shards", tmp_path / "whole") == 0
    assert all(np.array_equal(*pair) for pair in zip(arrays(out), arrays(tmp_path / "whole"), strict=True))
    read.clear()
    assert decode(place, "shards", out) == 0 and not read


@pytest.mark.slow  # two processes import everything
def test_two_processes_share_the_work(place, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, continuous_family.__file__, "vfmtok", "decode", str(place / "shards"), str(tmp_path / "out")]
    command += ["--vq-ckpt", str(place / "vae"), "--batch-size", "3"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("11 images of 16 px") == 1
    assert decode(place, "shards", tmp_path / "alone") == 0
    assert all(np.array_equal(*pair) for pair in zip(arrays(tmp_path / "out"), arrays(tmp_path / "alone"), strict=True))


def test_what_does_not_belong_together_is_one_line(place, tmp_path, capsys):
    vfmtok.save_pretrained(continuous_family.tokenizer(), tmp_path / "other")
    (tmp_path / "empty").mkdir()
    for source, model, more, message in (
        (place / "cache", tmp_path / "other", [], "was made by another tokenizer"),
        (place / "cache", place / "vae", ["--view", "top"], "no view 'top'; there are centre, centre flipped"),
        (place / "shards", place / "vae", ["--view", "centre"], "--view belongs to a cache"),
        (tmp_path / "empty", place / "vae", [], "no token cache at"),
    ):
        assert cli.main(["decode", str(source), str(tmp_path / "out"), "--vq-ckpt", str(model), *more]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert decode(place, "shards", tmp_path / "out") == 0
    assert decode(place, "cache", tmp_path / "out") == 2
    assert "holds an evaluation with another codes" in capsys.readouterr().err
