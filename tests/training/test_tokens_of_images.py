"""From images to tokens, a generator, and images again: training on images, pictures, and `vfmtok sample`."""

import io
import itertools
import json
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ranks
import timm
import torch
import train_gpt as training_benchmark
from photographs import jpeg, photographs
from PIL import Image
from small_caches import CLASSES, recipe_file, small_recipe, write_cache
from training_runs import ROOT, logged

import vfmtok
from vfmtok import cli, distributed
from vfmtok.commands.sample import find_classes
from vfmtok.data.code_cache import CodeCache
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.errors import ConfigError, DataError, SharedError
from vfmtok.generators.autoregressive import generate
from vfmtok.generators.counter_random import Draws
from vfmtok.generators.drawing import draw_codes
from vfmtok.pictures.style import CAPTION, GAP, MARGIN, TITLE
from vfmtok.training import sharding
from vfmtok.training.code_source import CodeData, encode, open_codes, training_codes
from vfmtok.training.generator_run import GeneratorRun
from vfmtok.training.run_log import RunLog
from vfmtok.training.train_generator import train_generator
from vfmtok.weights.hashing import tokenizer_hash

ALONE = distributed.World(0, 1, torch.device("cpu"))
GPT = {"vocab_size": 64}


class Place:
    """24 images, 6 held out, a tiny tokenizer with its encoder, and the token cache of the images."""

    def __init__(self, folder: Path):
        self.folder = folder
        images = [photo.resize((40, 36)) for photo in photographs()]
        for split, count, start in (("train", 24, 0), ("val", 6, 60)):
            records = [Record(jpeg(images[i % 8].rotate(5 * i + start)), i % 3, f"{i}.jpg") for i in range(count)]
            write_records(folder / f"images/{split}_lmdb", records, classes=CLASSES)
        torch.manual_seed(0)
        torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "encoder.pt")
        config = vfmtok.load_config(ROOT / "configs/tiny.yaml", [f"encoder.weights={folder}/encoder.pt"])
        vfmtok.save_config(config, folder / "tokenizer.yaml")
        self.tokenizer = vfmtok.VFMTok(config).eval()
        torch.save(vfmtok.to_released(self.tokenizer), folder / "tokenizer.pt")
        for split in ("train", "val"):
            out = ["codes", str(folder / f"images/{split}_lmdb"), str(folder / split), *self.named]
            assert cli.main([*out, "--views", "center", "--num-workers", "0"]) == 0

    @property
    def named(self) -> list[str]:
        return [
            "--vq-ckpt",
            f"{self.folder}/tokenizer.pt",
            "--transformer-config-file",
            f"{self.folder}/tokenizer.yaml",
        ]

    def data(self, **changes) -> dict:
        return {"vq_ckpt": f"{self.folder}/tokenizer.pt", "vq_config": f"{self.folder}/tokenizer.yaml", **changes}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def run(place) -> Path:
    pictures = {"every": 3, "classes": 2, "per_class": 3}
    recipe = small_recipe(place.folder, gpt=GPT, data=place.data(), pictures=pictures, optimizer={"steps": 3})
    train_generator(recipe, ALONE)
    return place.folder / "run"


def test_images_train_as_their_cache_does(place):
    """The same crops encoded at every step give the losses of the cache, and the same held-out loss."""
    settings = {"gpt": GPT, "optimizer": {"steps": 6}, "pictures": {"every": 0}}
    train_generator(small_recipe(place.folder, "cached", **settings), ALONE)
    images = {"code_path": None, "path": str(place.folder / "images"), "flip": False}
    train_generator(small_recipe(place.folder, "images_run", data=place.data(**images), **settings), ALONE)
    for name in ("loss/token", "validation/loss", "validation/accuracy"):
        found = logged(place.folder / "images_run", name)
        assert found == pytest.approx(logged(place.folder / "cached", name), abs=1e-5) and found
    both = place.data(val_path=str(place.folder / "images"))  # a cache to train on, images held out
    found = GeneratorRun(small_recipe(place.folder, "both", data=both, **settings), ALONE)
    cached = GeneratorRun(small_recipe(place.folder, "both", **settings), ALONE)
    assert torch.equal(found.held_out.code, cached.held_out.code) and found.baselines == cached.baselines
    assert torch.equal(found.held_out.labels, cached.held_out.labels)


def test_labels_beyond_the_classes_are_one_line(place, tmp_path):
    """Of images that do not name their classes: held-out ones at the start, others when they are met."""
    records = [Record(jpeg(photographs()[i].resize((40, 36))), 2 * i, f"{i}.jpg") for i in range(4)]
    for name, count in (("train", 2), ("val", 4)):
        write_records(tmp_path / f"{name}_lmdb", records[:count])
    images = {"code_path": None, "path": str(tmp_path / "train_lmdb"), "val_path": str(tmp_path / "val_lmdb")}
    with pytest.raises(DataError, match=r"val_lmdb has labels 0 to 6, the generator 3 classes \(--num-classes\)"):
        GeneratorRun(small_recipe(tmp_path, gpt=GPT, data=place.data(**images)), ALONE)
    images["val_path"] = str(tmp_path / "train_lmdb")
    run = GeneratorRun(small_recipe(tmp_path, gpt=GPT, data=place.data(**images)), ALONE)
    run.data.records = RecordDataset(tmp_path / "val_lmdb")
    with pytest.raises(DataError, match="labels 0 to 6"):
        next(run.codes())


def cell(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """An image of ``draw_rows``, enlarged from 32 to 128 pixels."""
    top, left = MARGIN + TITLE + row * (128 + CAPTION) + CAPTION, MARGIN + column * (128 + GAP)
    return picture[top : top + 128, left : left + 128]


def test_the_picture_is_what_generate_and_the_tokenizer_give(place, run):
    """The average's, of classes 0 and 2: sample 4 of the seed is the second image of the second row."""
    picture = np.asarray(Image.open(run / "pictures/ema_samples_0000003.png"))
    gpt = vfmtok.from_pretrained(run, "generator")
    ids = generate(gpt, torch.tensor([0, 0, 0, 2, 2, 2]), cfg_scale=2.0, seed=0)
    pixels = place.tokenizer.decode_to_uint8(ids, 32)[4].numpy().repeat(4, 0).repeat(4, 1)
    assert np.array_equal(cell(picture, 1, 1), pixels)
    assert (run / "pictures/samples_0000003.png").exists()


def test_a_stop_at_a_step_of_pictures_loses_none(place, run, monkeypatch):
    """SIGTERM comes in step 3, no step of validation: the run that continues draws what the other one drew."""
    honest = RunLog.advance

    def advance(log):
        log.steps = getattr(log, "steps", 0) + 1
        if log.steps == 3:
            signal.raise_signal(signal.SIGTERM)
        honest(log)

    monkeypatch.setattr(RunLog, "advance", advance)
    pictures, folder = {"every": 3, "classes": 2, "per_class": 3}, place.folder / "stopped"
    for steps in (4, 5):
        recipe = small_recipe(
            place.folder, "stopped", gpt=GPT, data=place.data(), pictures=pictures, optimizer={"steps": steps}
        )
        train_generator(recipe, ALONE)
        assert len(list((folder / "pictures").glob("*_0000003.png"))) == (0 if steps == 4 else 2)
    for name in ("samples", "ema_samples"):
        file = f"pictures/{name}_0000003.png"
        assert np.array_equal(Image.open(folder / file), Image.open(run / file))


def test_pictures_that_cannot_be_drawn_end_no_run(place, capsys):
    """At this temperature the logits overflow. The checkpoint is there before the pictures are tried."""
    pictures, folder = {"every": 2, "temperature": 1e-45}, place.folder / "cold"
    train_generator(
        small_recipe(place.folder, "cold", gpt=GPT, data=place.data(), pictures=pictures, optimizer={"steps": 4}), ALONE
    )
    alarm = "no picture of samples: the model's logits are not finite"
    told = capsys.readouterr().out
    assert f"ALARM at step 2: {alarm}" in told and "finished 4 steps" in told and not (folder / "pictures").exists()
    assert told.index("saved") < told.index(f"ALARM at step 4: {alarm}") < told.index("finished")


def sample(place, run, out, *more):
    return cli.main(["sample", "--gpt", str(run), *place.named, "--out", str(out), "--n", "5", *more])


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


def _drawn(rank: int) -> torch.Tensor:
    """ids (2,7,16) by a model that every process holds, and by one whose weights are spread over two processes."""
    torch.manual_seed(0)
    config = vfmtok.gpt_config("GPT-B", n_layer=2, n_head=2, dim=32, vocab_size=32, num_tokens=16, num_classes=3)
    gpt = vfmtok.GPT(config).eval()
    torch.nn.init.normal_(gpt.output.weight, std=0.2)
    world = distributed.World(rank, distributed.world_size(), torch.device("cpu"))
    found = [draw_codes(gpt, torch.arange(7) % 3, 2, world, cfg_scale=2.0)]
    if world.size > 1:
        sharding.shard(gpt, gpt.layers, ("prefill", "decode_step"), "none")
    found.append(draw_codes(gpt, torch.arange(7) % 3, 2, world, cfg_scale=2.0))
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
    assert torch.equal(alone[0], alone[1]) and len({tuple(row) for row in alone[0].tolist()}) == 7
    assert all(torch.equal(found, alone) for found in ranks.run(_drawn, tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "bird"], "'bird' is no class: give a number in [0,3) or a name such as 'cat'"),
        (["--classes", "3"], "'3' is no class"),
        (["--classes", ","], "names no class"),
        (["--classes", "1", "--top-p", "0"], "top_p"),
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


def test_the_tokenizer_of_other_tokens_is_refused(place, tmp_path, capsys):
    """In training, and when sampling."""
    write_cache(tmp_path / "train", codes=64)
    with pytest.raises(DataError, match="made by another tokenizer"):
        GeneratorRun(small_recipe(tmp_path, gpt=GPT, data=place.data()), ALONE)
    train_generator(small_recipe(tmp_path, gpt=GPT, optimizer={"steps": 1}), ALONE)
    assert sample(place, tmp_path / "run", tmp_path / "a.png", "--classes", "1") == 2
    assert "trained on the tokens of another tokenizer" in capsys.readouterr().err
    assert tokenizer_hash(place.tokenizer) != "ab" * 32


def _benchmark(name: str, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "benchmarks" / name), run_name="__main__")


def test_the_benchmark_of_training(place, monkeypatch, capsys):
    """Only images are encoded, and no part takes longer than the step."""
    recipe = recipe_file(place.folder, "benchmark", gpt=GPT, data={"code_path": None}, run={"accumulation": 2})
    flags = ["--recipe", recipe, "--code-path", place.folder / "train", "--anno-file", place.folder / "images"]
    _benchmark("train_gpt.py", monkeypatch, *flags, *place.named, "--steps", 7)
    cache, images = capsys.readouterr().out.split("images: ")
    for told, parts in ((cache, 4), (images, 5)):
        shares = [float(share) for share in re.findall(r"ms +([\d.]+)%", told)]
        assert len(shares) == parts and max(shares) <= 100
        assert "the step reaches" in told
    assert "encoding" in images and "encoding" not in cache and "times one from the cache" in images


@pytest.mark.parametrize("source", ["train", "images"])
def test_the_parts_make_up_the_step(place, source, monkeypatch):
    """Every look at the clock is a second after the last one: reading or encoding is one, a pass two, updating one."""
    images = {"code_path": None, "path": str(place.folder / "images")} if source == "images" else {}
    settings = {"gpt": GPT, "data": place.data(**images), "run": {"accumulation": 2}}
    run, clock = GeneratorRun(small_recipe(place.folder, "clock", **settings), ALONE), itertools.count()
    monkeypatch.setattr(training_benchmark, "_now", lambda device: next(clock))
    times = training_benchmark.time_steps(run, 3)
    reading = [sum(spent) for spent in zip(times["reading"], times["encoding"], strict=True)]
    assert reading == pytest.approx([1, 1, 1]) and any(times["encoding"]) == (source == "images")
    assert times["forward"] == times["backward"] == [2, 2, 2] and times["update"] == [1, 1, 1]


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


def test_torchrun_script(tmp_path):
    """Two processes of a script, on one machine, with its arguments and exit code."""
    (tmp_path / "script.py").write_text(
        "import sys\nfrom vfmtok import distributed\nwith distributed.program('script') as world:\n"
        "    print(f'<{world.rank} of {world.size}: {sys.argv[1:]}>', flush=True)\n"
        "    distributed.barrier()  # torchrun ends the others when one fails\n"
        "    sys.exit(3 if world.rank else 0)\n"
    )
    command = [str(ROOT / "scripts/torchrun.sh"), str(tmp_path / "script.py"), "--lr", "a b"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PROC_PER_NODE": "2", "MASTER_PORT": port}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert "<0 of 2: ['--lr', 'a b']>" in done.stdout and "<1 of 2: ['--lr', 'a b']>" in done.stdout
    assert done.returncode != 0
    missing = subprocess.run([command[0], "nowhere.py"], capture_output=True, text=True, env=environment, timeout=60)
    assert missing.returncode == 2 and "no script" in missing.stderr and missing.stderr.count("\n") == 1


def test_what_an_encoder_draws_belongs_to_the_sample(place):
    """Of a tokenizer whose code is a matter of chance: not of the batch, and another in the next epoch."""

    class Noisy:
        encode_draws, code, device = True, vfmtok.Latents((3, 1, 1)), torch.device("cpu")

        def encode(self, images, draws=None):
            means = images.mean((2, 3))[:, :, None, None]  # (B,3,1,1)
            noise = 0 if draws is None else draws.normal("posterior", 3)[:, :, None, None]
            return SimpleNamespace(latents=means + noise)

    images, positions = torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.tensor([3, 9, 4, 3, 7])
    whole = encode(Noisy(), images, 5, "none", Draws(1, positions))
    assert torch.equal(encode(Noisy(), images, 2, "none", Draws(1, positions)), whole)
    assert torch.equal(whole[0], whole[3]) and len(whole.unique()) == 12
    assert torch.equal(encode(Noisy(), images, 2, "none"), torch.full((5, 3, 1, 1), -1.0))
    data = CodeData(None, RecordDataset(place.folder / "images/train_lmdb"), None, None, Noisy(), "", CLASSES)
    Noisy.config = SimpleNamespace(image_size=8)
    recipe = small_recipe(place.folder, gpt=GPT, data=place.data(path="x", code_path=None, num_workers=0))
    batches = training_codes(data, recipe, ALONE, 0, 2)
    batch = next(batches)
    batches.close()
    means = batch.code - Draws(recipe.run.seed, batch.positions).normal("posterior", 3)[:, :, None, None]
    assert means.abs().max() <= 1.0001  # of pixels


def test_held_out_shards_of_a_cache_take_the_settings_of_shards(place, tmp_path):
    """Two members of each sample are images: data.image_key says which one is meant."""
    images = {f"{i}.jpg": jpeg(photo) for i, photo in enumerate(photographs()[:3])}
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        for name, content in images.items():
            for member, held in (
                (name, content),
                (name.replace("jpg", "png"), b""),
                (name.replace("jpg", "cls"), b"1"),
            ):
                info = tarfile.TarInfo(member)
                info.size = len(held)
                archive.addfile(info, io.BytesIO(held))
    file = write_cache(tmp_path / "train", made_by=tokenizer_hash(place.tokenizer), codes=64) / "cache.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "classes": None}))
    data = place.data(val_path=f"{tmp_path}/val.tar", image_key="jpg", label_key="none")
    held_out = open_codes(small_recipe(tmp_path, gpt=GPT, data=data), ALONE).held_out_records
    assert [held_out[i].image for i in range(3)] == list(images.values())
