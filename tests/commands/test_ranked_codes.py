"""`vfmtok codes --rank 2`: the second nearest codes of every view, as sequences of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from codes_place import TINY, in_one_thread

import vfmtok
from vfmtok import cli
from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCache
from vfmtok.data.order import SampleOrder
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import EvaluationCrop, to_unit_range

COUNT = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    yield from in_one_thread(tmp_path_factory.mktemp("codes"), COUNT)


@pytest.fixture(scope="module")
def ranked(place, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ranked") / "cache"
    assert cli.main(place.arguments(out, "--rank", "2")) == 0
    return out


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_they_are_the_two_nearest_codes(place, ranked):
    """By all distances in float64, of both views."""
    cache, records = CodeCache(ranked), RecordDataset(place.data)
    assert (len(cache), cache.num_views, cache.num_ranks, cache.num_sequences) == (COUNT, 4, 2, 2 * COUNT)
    assert cache.metadata["views"][:2] == ["centre", "centre, rank 2"]
    codes = F.normalize(place.tokenizer.quantizer.codebook.detach().double(), dim=-1)
    images = torch.stack([to_unit_range(EvaluationCrop(32)(records[row].image)) for row in range(4)])
    for view, seen in enumerate((images, images.flip(-1))):
        with torch.no_grad():
            latents = F.normalize(place.tokenizer.encode(seen).latents.double(), dim=-1)  # (4,K,E)
        nearest = (latents @ codes.T).topk(2, dim=-1).indices  # (4,K,2)
        for rank in range(2):
            found = torch.stack([cache[row, 2 * view + rank][0] for row in range(4)])
            assert (found == nearest[..., rank]).float().mean() > 0.98  # another batch may round a tie the other way
    assert torch.equal(cache.labels, torch.arange(COUNT) % 3)


def test_the_first_rank_is_the_cache_without(place, ranked, tmp_path, capsys):
    assert cli.main(place.arguments(tmp_path / "plain")) == 0
    assert f"{COUNT} records x 2 views x 16 tokens" in capsys.readouterr().out
    plain = CodeCache(tmp_path / "plain")
    assert plain.num_ranks == 1 and "ranks" not in plain.metadata
    np.testing.assert_array_equal(np.load(ranked / "ids.npy")[:, ::2], np.load(tmp_path / "plain/ids.npy"))
    assert cli.main(place.arguments(tmp_path / "plain", "--rank", "2")) == 2
    assert "holds a token cache with another views" in capsys.readouterr().err


def test_an_interrupted_one_ends_with_the_same_bytes(place, ranked, tmp_path):
    """The second of three blocks was not written yet."""
    out = tmp_path / "cache"
    shutil.copytree(ranked, out)
    metadata = json.loads((out / "cache.json").read_text())
    for key in ("round_trip", "codebook_usage", "replaced_rows"):
        del metadata[key]
    (out / "cache.json").write_text(json.dumps({**metadata, "complete": False}))
    (out / "contact_sheet.png").unlink()
    progress = np.full(COUNT, code_cache.DONE, np.uint8)
    progress[4:8] = code_cache.TO_DO
    progress.tofile(out / "progress.bin")
    ids = np.load(out / "ids.npy", mmap_mode="r+")
    ids[4:8] = 0
    ids.flush()
    assert cli.main(place.arguments(out, "--rank", "2")) == 0
    assert content(out).keys() == content(ranked).keys()
    for name in ("ids.npy", "labels.npy"):
        assert (out / name).read_bytes() == (ranked / name).read_bytes()


@pytest.mark.slow
def test_two_processes_write_what_one_writes(place, ranked, tmp_path):
    out = tmp_path / "cache"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "vfmtok"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*launch, *place.arguments(out, "--rank", "2")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert content(out) == content(ranked)


def test_an_epoch_has_every_sequence_once(ranked):
    """Both codes of an image come from the view that the epoch draws."""
    cache = CodeCache(ranked)
    order = SampleOrder(cache.num_sequences, 8, seed=3)
    seen, batches = [], order.batches()
    for _ in range(6):  # two epochs of three steps
        step = next(batches)
        ids, labels = cache.batch(step.indices, 3, step.epochs)
        for index, epoch, row, label in zip(step.indices, step.epochs, ids, labels, strict=True):
            record, rank = divmod(int(index), 2)
            view = cache.view_for(3, int(epoch), record)
            assert torch.equal(row, cache[record, 2 * view + rank][0]) and label == record % 3
            seen.append((int(epoch), record, rank))
    assert len(seen) == len(set(seen)) == 2 * 2 * COUNT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--rank", "0"), "--rank must be positive"),
        (("--rank", "65"), "from 1 to the codebook's size 64"),
        (
            ("--rank", "2", "--set", "quantizer.kind=fsq", "--set", "quantizer.levels=[4,4,4]"),
            "fsq rounds and has no second nearest code",
        ),
    ],
)
def test_what_has_no_second_nearest_is_refused(place, tmp_path, capsys, settings, message):
    arguments = place.arguments(tmp_path / "cache", *settings)
    if "fsq" in message:
        quantized = vfmtok.VFMTok(
            vfmtok.load_config(
                TINY, [f"encoder.weights={place.encoder}", "quantizer.kind=fsq", "quantizer.levels=[4,4,4]"]
            )
        )
        torch.save({"model": vfmtok.to_released(quantized)}, tmp_path / "fsq.pt")
        arguments[arguments.index("--vq-ckpt") + 1] = str(tmp_path / "fsq.pt")
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "cache").exists()
