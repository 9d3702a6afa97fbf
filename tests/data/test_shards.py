"""Training straight from shards: the right records, in any process, and every one once per epoch."""

import functools
import http.server
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from image_makers import encoded

from vfmtok import cli
from vfmtok.data import remote_shards, shards
from vfmtok.data.dataset_folder import open_dataset, open_for_training, open_splits
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import WINDOW, SampleOrder
from vfmtok.data.shards import ShardOptions
from vfmtok.data.transforms import EvaluationCrop
from vfmtok.errors import DataError


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(first: int, count: int, label=lambda i: str(i % 3)) -> dict[str, bytes]:
    """Images that all differ, 8 px, with a .cls each."""
    members = {}
    for i in range(first, first + count):
        members |= {f"{i:06d}.png": encoded(i, (8, 8), fmt="PNG"), f"{i:06d}.cls": label(i).encode()}
    return members


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def four(tmp_path):
    """A folder with shards of 5, 7, 1 and 9 samples."""
    first = 0
    for number, count in enumerate((5, 7, 1, 9)):
        write_shard(tmp_path / f"shards/s-{number:02d}.tar", samples(first, count))
        first += count
    return tmp_path / "shards"


def test_records_are_those_of_the_webdataset_library(four):
    webdataset = pytest.importorskip("webdataset")
    theirs = webdataset.WebDataset(sorted(map(str, four.glob("*.tar"))), shardshuffle=False)
    expected = [(sample["png"], int(sample["cls"])) for sample in theirs]
    ours = open_dataset(four)
    assert [(record.image, record.label) for record in ours] == expected and len(expected) == 22
    assert ours.classes == ["0", "1", "2"] and ours[-1].name == "s-03/000021.png"
    again = pickle.loads(pickle.dumps(ours))
    assert again[13] == ours[13] and again.fingerprint == ours.fingerprint
    one = open_dataset(four / "s-01.tar")
    assert [one[i].image for i in range(7)] == [ours[5 + i].image for i in range(7)]
    pattern = open_dataset(f"{four}/s-{{00..02}}.tar")
    assert len(pattern) == 13 and pattern[12].image == ours[12].image


def test_labels_are_those_of_prepare(tmp_path):
    """Names sorted over all shards, of which none holds all."""
    write_shard(tmp_path / "s/0.tar", samples(0, 6, lambda i: ["zebra", "ant"][i % 2]))
    write_shard(tmp_path / "s/1.tar", samples(6, 6, lambda i: ["bee", "zebra"][i % 2]))
    assert cli.main(["prepare", str(tmp_path / "s"), str(tmp_path / "out")]) == 0
    prepared, direct = open_dataset(tmp_path / "out/train_lmdb"), open_dataset(tmp_path / "s")
    assert direct.classes == prepared.classes == ["ant", "bee", "zebra"]
    labels = [{record.image: record.label for record in dataset} for dataset in (prepared, direct)]
    assert labels[0] == labels[1] and len(labels[0]) == 12


def test_the_index_follows_the_shard(four, monkeypatch):
    dataset = open_dataset(four)
    index, before = four / "s-02.tar.index", (four / "s-02.tar.index").read_bytes()
    walked = []
    build = shards.shard_index.build
    monkeypatch.setattr(shards.shard_index, "build", lambda path, *rest: walked.append(path.name) or build(path, *rest))
    assert open_dataset(four).fingerprint == dataset.fingerprint and not walked
    index.write_bytes(before[:-3])
    assert open_dataset(four)[12] == dataset[12] and walked == ["s-02.tar"] and index.read_bytes() == before
    write_shard(four / "s-02.tar", samples(100, 1, lambda i: "2"))  # the very same size
    changed = open_dataset(four)
    assert changed[12].image == encoded(100, (8, 8), fmt="PNG") and walked == ["s-02.tar"] * 2
    (four / "s-02.tar").write_bytes(b"")
    fresh = pickle.loads(pickle.dumps(changed))
    with pytest.raises(DataError, match="has changed"):
        fresh[12]


def test_the_cache_takes_an_index_that_the_folder_does_not(four, tmp_path):
    for number in range(4):
        (four / f"s-{number:02d}.tar.index").mkdir()  # in the way, also of root
    expected = [record.image for record in open_dataset(four)]
    assert len(list((tmp_path / "cache").rglob("*.index"))) == 4
    assert [record.image for record in open_dataset(four)] == expected and len(set(expected)) == 22


def test_small_images_are_left_out_and_counted(tmp_path):
    sizes = [(8, 8), (8, 40), (9, 9), (20, 10), (30, 7)]
    members = {f"{i}.png": encoded(i, size, fmt="PNG") for i, size in enumerate(sizes)}
    members |= {f"{i}.cls": b"0" for i in range(5)} | {"9.jpg": b"\xff\xd8\xffnothing", "9.cls": b"0"}
    write_shard(tmp_path / "a.tar", {key: value for key, value in members.items() if not key.startswith("9")})
    whole = open_dataset(tmp_path / "a.tar")
    large = open_splits(tmp_path / "a.tar", ShardOptions(min_size=9))[""]
    assert [record.name for record in large] == ["a/2.png", "a/3.png"] and large.metadata["too_small"] == 3
    assert any("3 of 5 images have a short side below 9 px" in note for note in large.notes)
    assert len({whole.fingerprint, large.fingerprint}) == 2
    prepared = tmp_path / "out"
    assert cli.main(["prepare", str(tmp_path / "a.tar"), str(prepared)]) == 0
    with pytest.raises(DataError, match=r"data\.min_size is for shards"):
        open_for_training(prepared, options=ShardOptions(min_size=9))


def test_splits_by_name(tmp_path):
    for split, first in (("train", 0), ("val", 6), ("test", 9)):
        write_shard(tmp_path / f"s/x-{split}-0.tar", samples(first, 3))
    train, held_out = open_for_training(tmp_path / "s")
    assert (len(train), len(held_out)) == (3, 3) and held_out[0].image == encoded(6, (8, 8), fmt="PNG")
    train, held_out = open_for_training(tmp_path / "s/x-test-0.tar", f"{tmp_path}/s/x-*.tar")
    assert train[0].image == encoded(9, (8, 8), fmt="PNG") and held_out[0].image == encoded(6, (8, 8), fmt="PNG")
    write_shard(tmp_path / "s/more.tar", samples(20, 1))
    with pytest.raises(DataError, match=r"but more\.tar does not"):
        open_for_training(tmp_path / "s")


def test_what_is_no_shard_is_one_line(tmp_path):
    image = encoded(0, fmt="PNG")
    write_shard(tmp_path / "folders.tar", {"cat/1.png": image, "dog/2.png": image})
    with pytest.raises(DataError, match="vfmtok prepare"):
        open_dataset(tmp_path / "folders.tar")
    assert len(open_splits(tmp_path / "folders.tar", ShardOptions(label_key="none"))[""]) == 2
    write_shard(tmp_path / "two.tar", {"1.png": image, "1.jpg": image, "1.cls": b"0"})
    with pytest.raises(DataError, match="--image-key jpg or png"):
        open_dataset(tmp_path / "two.tar")
    assert len(open_splits(tmp_path / "two.tar", ShardOptions(image_key="jpg"))[""]) == 1
    (tmp_path / "cut.tar").write_bytes((tmp_path / "two.tar").read_bytes()[:1100])
    with pytest.raises(DataError, match=r"cut\.tar"):
        open_dataset(tmp_path / "cut.tar")
    with pytest.raises(DataError, match="compressed"):
        with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("1.cls"))
        open_dataset(tmp_path / "zipped.tar")
    with pytest.raises(DataError, match="no such source"):
        open_dataset(tmp_path / "nowhere-{0..3}.tar")


def test_memory_does_not_grow_with_the_samples(tmp_path):
    """What a worker is sent, and all that a process keeps, is the same for 10 samples and for 1000."""
    sizes = []
    for count in (10, 1000):
        members = samples(0, 10)
        images = [members[f"{i:06d}.png"] for i in range(10)]
        many = {}
        for i in range(count):
            many |= {f"{i:06d}.png": images[i % 10], f"{i:06d}.cls": b"1"}
        dataset = open_dataset(write_shard(tmp_path / f"{count:04d}.tar", many))
        assert len([dataset[i] for i in range(count)]) == count
        sizes.append(len(pickle.dumps(dataset)))
    assert abs(sizes[1] - sizes[0]) < 32


# --------------------------------------------------------------------------------------
# Order and resuming
# --------------------------------------------------------------------------------------


def test_the_order_keeps_shards_together():
    sizes = np.array([5, 0, 40, 17, 30, 1, 25, 33, 20, 29, 12, 50])
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    order = SampleOrder(int(sizes.sum()), 8, seed=3, shard_sizes=sizes)
    first, second = order.epoch_order(0), order.epoch_order(1)
    for epoch in (first, second):
        assert sorted(epoch.tolist()) == list(range(sizes.sum()))
        seen = shard_of[epoch]
        spans = [(np.flatnonzero(seen == shard)[[0, -1]]) for shard in range(len(sizes)) if sizes[shard]]
        open_at = [sum(start <= place <= end for start, end in spans) for place in range(len(seen))]
        assert max(open_at) <= 2 * WINDOW < len(spans)
    assert (first != second).any() and (np.diff(shard_of[first]) != 0).mean() > 0.3  # mixed, not one by one
    parts = [SampleOrder(int(sizes.sum()), 8, 3, world_size=2, rank=r, shard_sizes=sizes).batch(80) for r in (0, 1)]
    assert np.concatenate([part.indices for part in parts]).tolist() == order.batch(80).indices.tolist()


PROGRAM = """
import sys, time
from vfmtok.data.dataset_folder import open_dataset
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import SampleOrder
from vfmtok.data.transforms import EvaluationCrop
path, rank, seen, log, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
records = open_dataset(path)
order = SampleOrder(len(records), 4, seed=5, world_size=2, rank=rank, shard_sizes=records.shard_sizes)
with open(log, "a") as file:
    for batch in ImageLoader(records, EvaluationCrop(8), order, samples_seen=seen, num_workers=1):
        print(batch.samples_seen, *batch.indices.tolist(), *batch.images[:, 0, 0, 0].tolist(), file=file, flush=True)
        steps -= 1
        if batch.samples_seen == 132:
            break
        while not steps:  # to be killed here, with its workers ahead
            time.sleep(1)
"""


def test_two_processes_killed_and_resumed_see_every_sample_once_per_epoch(four, tmp_path):
    """22 samples, 6 epochs; killed after 7 and 5 steps, continued from the last step that both had made."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(shards.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    kept: dict[int, list[list[int]]] = {}  # samples seen -> what each rank read for that step
    seen = 0
    for attempt in range(3):
        logs = [tmp_path / f"log{attempt}-{rank}" for rank in (0, 1)]
        steps = (7, 5) if attempt < 2 else (99, 99)
        started = [
            subprocess.Popen(
                [sys.executable, str(program), str(four), str(rank), str(seen), str(log), str(count)], env=environment
            )
            for rank, (log, count) in enumerate(zip(logs, steps, strict=True))
        ]
        while attempt < 2 and any(len(_lines(log)) < count for log, count in zip(logs, steps, strict=True)):
            assert all(process.poll() is None for process in started)
            time.sleep(0.01)
        for process in started:
            if attempt < 2:
                process.send_signal(signal.SIGKILL)
            process.wait(timeout=120)
        done = [{int(line.split()[0]): list(map(int, line.split()[1:])) for line in _lines(log)} for log in logs]
        common = sorted(set(done[0]) & set(done[1]))
        kept |= {step: [rank[step] for rank in done] for step in common}
        seen = common[-1]
    assert sorted(kept) == list(range(4, 133, 4))
    indices = [index for step in sorted(kept) for read in kept[step] for index in read[: len(read) // 2]]
    for epoch in range(6):
        assert sorted(indices[22 * epoch : 22 * (epoch + 1)]) == list(range(22))
    records, crop = open_dataset(four), EvaluationCrop(8)
    for read in (read for step in kept.values() for read in step):  # and the right images
        half = len(read) // 2
        assert read[half:] == [int(crop(records[index].image)[0, 0, 0]) for index in read[:half]]


def _lines(log: Path) -> list[str]:
    text = log.read_text() if log.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()  # the last may be half written


# --------------------------------------------------------------------------------------
# Behind a URL
# --------------------------------------------------------------------------------------


@pytest.fixture
def server(four):
    """The folder on the loopback: its URL, and what was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, text, *rest):
            asked.append(f"{self.command} {self.path}")

    handler = functools.partial(Handler, directory=str(four))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}", asked
        serving.shutdown()


def test_shards_over_http(four, server, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    url, asked = server
    monkeypatch.setattr(remote_shards, "KEPT_SHARDS", 2)
    remote = open_dataset(f"{url}/s-{{00..03}}.tar")
    assert sum(line.startswith("GET") and line.endswith(".tar") for line in asked) == 4  # to index them, once
    local = open_dataset(four)  # writes its indexes beside them
    assert [(r.image, r.label, r.name) for r in remote] == [(r.image, r.label, r.name) for r in local]
    assert remote.shard_sizes.tolist() == [5, 7, 1, 9] and local.shard_sizes is None
    assert len(list((tmp_path / "cache").rglob("*.tar"))) <= 2
    asked.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert len(open_dataset(f"{url}/s-{{00..03}}.tar")) == 22
    assert not any(line.startswith("GET") and line.endswith(".tar") for line in asked)  # the indexes were enough
    order = SampleOrder(22, 4, seed=1, shard_sizes=remote.shard_sizes)
    loader = ImageLoader(remote, EvaluationCrop(8), order, num_workers=1)
    read = torch.cat([next(loader).indices for _ in range(11)])
    loader.close()
    assert sorted(read[:22].tolist()) == sorted(read[22:].tolist()) == list(range(22))
    with pytest.raises(DataError, match=r"cannot read .*/nowhere"):
        open_dataset(f"{url}/nowhere.tar")


def test_a_server_that_stumbles(four, monkeypatch):
    """Reading is tried again; what never comes is one line."""
    monkeypatch.setattr(remote_shards.time, "sleep", lambda seconds: None)
    failures = [OSError("reset"), OSError("reset"), None]

    def attempt():
        error = failures.pop(0)
        if error:
            raise error
        return "here"

    assert remote_shards._persistently("x://y", attempt) == "here"
    failures += [OSError("connection\nlost")] * 9
    with pytest.raises(DataError, match="cannot read x://y: OSError connection lost"):
        remote_shards._persistently("x://y", attempt)
    with pytest.raises(DataError, match="cannot read nonsense://y"):
        open_dataset("nonsense://y/0.tar")


def test_json_labels_over_a_file_url(tmp_path):
    """A folder that is listed, and class names beside numbers."""
    image = {i: encoded(i, (8, 8), fmt="PNG") for i in range(4)}
    for shard in range(2):
        members = {}
        for i in (2 * shard, 2 * shard + 1):
            document = json.dumps({"label": i % 2, "class_name": ["cat", "dog"][i % 2]})
            members |= {f"{i}.png": image[i], f"{i}.json": document.encode()}
        write_shard(tmp_path / f"s/{shard}.tar", members)
    dataset = open_dataset(f"file://{tmp_path}/s")
    assert [(r.image, dataset.class_name(r.label)) for r in dataset] == [
        (image[i], ["cat", "dog"][i % 2]) for i in range(4)
    ]
