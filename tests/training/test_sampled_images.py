"""A generator's images: `vfmtok sample`, whatever the batch and the processes, and `vfmtok agreement`."""

import json
import shutil

import numpy as np
import pytest
import ranks
import torch
from image_place import cell, sample
from PIL import Image

import vfmtok
from vfmtok import cli, distributed
from vfmtok.commands.sample import find_classes
from vfmtok.data.code_cache import CodeCache
from vfmtok.errors import ConfigError, SharedError
from vfmtok.generators import cuda_graphs
from vfmtok.generators.drawing import draw_codes
from vfmtok.generators.kv_cache import FixedKVCache
from vfmtok.training import sharding


def test_the_grid_does_not_depend_on_the_batch(place, run, tmp_path, capsys):
    assert sample(place, run, tmp_path / "a.png", "--classes", "0,Ωmega") == 0
    assert "10 images of 32 px, 2 classes" in capsys.readouterr().out
    assert sample(place, run, tmp_path / "b.png", "--classes", "cat,2", "--batch-size", "3") == 0
    assert sample(place, run, tmp_path / "c.png", "--classes", "cat,2", "--seed", "1") == 0
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in "abc")
    assert np.abs(a - b).max() <= 1 and not np.array_equal(a[60:], c[60:])


def test_sampling_settings_reach_the_sampler(place, run, tmp_path):
    """Greedy: all images of a class are one."""
    assert sample(place, run, tmp_path / "a.png", "--classes", "1", "--greedy", "--cfg-scale", "1") == 0
    images = [cell(np.asarray(Image.open(tmp_path / "a.png")), 0, column) for column in range(5)]
    assert all(np.array_equal(image, images[0]) for image in images) and images[0].std() > 0
    assert sample(place, run, tmp_path / "b.png", "--classes", "1", "--top-k", "1", "--cfg-scale", "1") == 0
    assert np.array_equal(cell(np.asarray(Image.open(tmp_path / "b.png")), 0, 2), images[0])


def test_the_cache_of_fixed_length_draws_the_same(place, run, tmp_path, monkeypatch):
    made, build = [], FixedKVCache.__init__
    monkeypatch.setattr(FixedKVCache, "__init__", lambda cache, *size: made.append(size) or build(cache, *size))
    for name, more in (("a", ()), ("b", ("--kv-cache", "fixed"))):
        assert sample(place, run, tmp_path / f"{name}.png", "--classes", "0,1", "--cfg-scale", "2", *more) == 0
        assert bool(made) == bool(more)
    a, b = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ab")
    assert np.array_equal(a[60:], b[60:])  # below the title, which names the setting


def _drawn(rank: int) -> torch.Tensor:
    """ids (3,7,16) by a model that every process holds, and by one whose weights are spread over two processes, through
    either cache."""
    torch.manual_seed(0)
    config = vfmtok.gpt_config("GPT-B", n_layer=2, n_head=2, dim=32, vocab_size=32, num_tokens=16, num_classes=3)
    gpt = vfmtok.GPT(config).eval()
    torch.nn.init.normal_(gpt.output.weight, std=0.2)
    world = distributed.World(rank, distributed.world_size(), torch.device("cpu"))
    found = [draw_codes(gpt, torch.arange(7) % 3, 2, world, cfg_scale=2.0)]
    if world.size > 1:
        cuda_graphs.RECORDERS["cpu"] = lambda device: "a recorder"  # in this process alone
        assert cuda_graphs.recorder_of(gpt) == "a recorder"
        sharding.shard(gpt, gpt.layers, ("prefill", "decode_step"), "none")
        assert cuda_graphs.recorder_of(gpt) is None
    for cache in ("growing", "fixed"):
        found.append(draw_codes(gpt, torch.arange(7) % 3, 2, world, cfg_scale=2.0, kv_cache=cache))
    return torch.stack(found)


def _refused(rank: int) -> torch.Tensor:
    """What is told where the second process has other, damaged weights."""
    gpt = vfmtok.GPT(vfmtok.gpt_config("GPT-B", n_layer=1, n_head=2, dim=32, vocab_size=32, num_tokens=16)).eval()
    torch.nn.init.constant_(gpt.output.weight, float("nan") if rank else 0.1)
    with pytest.raises(SharedError) as caught:
        draw_codes(gpt, torch.arange(7), 2, distributed.World(rank, 2, torch.device("cpu")))
    return torch.tensor(list(str(caught.value).encode()))


def test_what_one_process_cannot_draw_all_say(tmp_path):
    told = [bytes(text.tolist()).decode() for text in ranks.run(_refused, tmp_path)]
    assert told[0] == told[1] and "logits are not finite" in told[0]


def test_the_grid_does_not_depend_on_the_ranks(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = _drawn(0)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone[0], alone[1]) and torch.equal(alone[0], alone[2])
    assert len({tuple(row) for row in alone[0].tolist()}) == 7
    assert all(torch.equal(found, alone) for found in ranks.run(_drawn, tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "bird"], "'bird' is no class: give a number in [0,3) or a name such as 'cat'"),
        (["--classes", "3"], "'3' is no class"),
        (["--classes", ","], "names no class"),
        (["--classes", "1", "--top-p", "0"], "top_p"),
        (["--classes", "1", "--kv-cache", "static"], "kv_cache"),
        (["--classes", "1", "--n", "0"], "must be positive"),
        (["--classes", "1", "--image-size", "0"], "--image-size must be from 1 to"),
        (["--classes", "1", "--out", "nowhere/a.png"], "cannot write nowhere/a.png"),
        (["--classes", "1", "--out", "a.pngg"], "cannot write a.pngg"),
        (["--classes", "1", "--num-classes", "4"], "has num_classes 3, not 4"),
        (["--classes", "1", "--gpt-model", "GPT-B"], "has n_layer 2, not 12"),
    ],
)
def test_samples_that_cannot_be_drawn(place, run, tmp_path, capsys, arguments, message):
    assert sample(place, run, tmp_path / "a.png", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_names_may_be_numbers():
    assert find_classes("1,0", ["1", "0"], 2) == [0, 1]
    with pytest.raises(ConfigError, match="does not know names"):
        find_classes("cat", None, 2)
    numbers = [str(number) for number in range(1, 10)]
    assert find_classes("1, 9", numbers, 9) == [0, 8]
    with pytest.raises(ConfigError, match=r"no class is called '0'.*label 0 is class '1'"):
        find_classes("0", numbers, 9)


def test_names_may_hold_commas_and_may_be_several():
    names = ["tench, Tinca tinca", "crane", "goldfish, Carassius auratus", "crane", "a", "b", "a, b", "ice lolly,lolly"]
    assert find_classes("tench, Tinca tinca", names, 8) == [0]
    assert find_classes("goldfish,  Carassius auratus,7,tench,Tinca tinca", names, 8) == [2, 7, 0]
    assert find_classes("tench, Carassius auratus, lolly", names, 8) == [0, 2, 7]
    for word, message in (("crane", "2 classes are called 'crane': give a number, 1 or 3"), ("a,b", "its parts")):
        with pytest.raises(ConfigError, match=message):
            find_classes(word, names, 8)
    assert find_classes("3,1", names, 8) == [3, 1]


def test_agreement_with_classes(place, run, capsys):
    """Of 6 held-out images, 2 a class from the generator; overlap counts equal ids."""
    flags = ["--gpt", run, *place.named, "--data", place.folder / "images", "--code-path", place.folder / "train"]
    command = ["agreement", *flags, "--per-class", 2, "--levels", 1, 2, "--out", run.parent / "agreement"]
    assert cli.main(list(map(str, command))) == 0
    numbers = json.loads((run.parent / "agreement/results.json").read_text())["numbers"]
    shares = [entry for name, entry in numbers.items() if name.startswith("agreement")]
    assert len(shares) == 5 and all("of 6 images" in entry["protocol"] for entry in shares)
    assert all(entry["value"] * 6 == pytest.approx(round(entry["value"] * 6)) for entry in shares)
    val, train = (CodeCache(place.folder / split) for split in ("val", "train"))
    closest = [max(float((val[i, 0][0] == train[j, 0][0]).float().mean()) for j in range(24)) for i in range(6)]
    assert numbers["mean token overlap of held-out images"]["value"] == pytest.approx(np.mean(closest))
    assert "agreement, CFG 2" in capsys.readouterr().out


def test_agreement_needs_the_tokenizers_own_cache(place, run, tmp_path, capsys):
    shutil.copytree(place.folder / "train", tmp_path / "train")
    facts = json.loads((tmp_path / "train/cache.json").read_text())
    (tmp_path / "train/cache.json").write_text(json.dumps({**facts, "tokenizer_hash": "ab" * 32}))
    flags = ["--gpt", run, *place.named, "--data", place.folder / "images", "--code-path", tmp_path / "train"]
    assert cli.main(["agreement", *map(str, flags)]) == 2
    assert "was made by another tokenizer" in capsys.readouterr().err
