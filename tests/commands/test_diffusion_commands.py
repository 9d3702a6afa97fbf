"""From images to images by latents: codes, train_c2i.py, sample, test_net.py, agreement, with a tiny VFMAE."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_vfmae
import torch
from photographs import jpeg, photographs
from PIL import Image

import vfmtok
from vfmtok import cli, distributed
from vfmtok.commands import generator_flags
from vfmtok.commands.evaluation_flags import generation_parser
from vfmtok.commands.evaluation_scripts import measure_generator
from vfmtok.data.records import Record, write_records
from vfmtok.training.train_generator import train_generator

ALONE = distributed.World(0, 1, torch.device("cpu"))
SETTINGS = {
    "generator": {"kind": "diffusion", "width": 32, "depth": 1, "heads": 2, "cosine_weight": 0.0},
    "optimizer": {"steps": 12, "lr": 2e-2, "lr_batch": None},
    "ema": {"enabled": False},
    "run": {"global_batch": 4, "validate_every": 12, "save_every": 12, "precision": "none", "tensorboard": False},
    "pictures": {"every": 12, "classes": 2, "per_class": 1, "sampling": {"steps": 2, "cfg_scale": 2.0}},
}


class Place:
    """Images, a tokenizer, a cache of its latents, two generators that learned them, and one of a file."""

    def __init__(self, folder: Path):
        self.folder, self.data, self.codes = folder, folder / "data", folder / "codes"
        images = [photo.resize((40, 36)) for photo in photographs()]
        for split, count in (("train", 18), ("val", 9)):
            records = [Record(jpeg(images[i % 8].rotate(9 * i)), i % 3, f"{i}.jpg") for i in range(count)]
            write_records(self.data / f"{split}_lmdb", records, classes=["a", "b", "c"])
        tokenizer = tiny_vfmae.tokenizer()
        vfmtok.save_pretrained(tokenizer, folder / "tokenizer")
        codes = ["codes", str(self.data / "train_lmdb"), str(self.codes), "--vq-ckpt", str(folder / "tokenizer")]
        assert cli.main([*codes, "--num-workers", "0"]) == 0
        for name, seed in (("dit", 0), ("weaker", 1)):
            file = folder / f"{name}.yaml"
            settings = {**SETTINGS, "run": {**SETTINGS["run"], "seed": seed, "results_dir": str(folder / name)}}
            file.write_text(json.dumps(settings))
            command = f"--recipe {file} --code-path {self.codes} --vq-ckpt {folder / 'tokenizer'}"
            recipe = generator_flags.generator_recipe(generator_flags.generator_parser().parse_args(command.split()))
            train_generator(recipe, ALONE)

    def models(self, generator: str = "dit") -> list[str]:
        return ["--vq-ckpt", str(self.folder / "tokenizer"), "--gpt", str(self.folder / generator)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("diffusion"))


def test_training_drew_pictures(place):
    assert {path.name for path in (place.folder / "dit/pictures").iterdir()} >= {"samples_0000012.png"}


def sampled(place, out: str, *flags: str, generator: str = "dit") -> np.ndarray:
    command = ["sample", *place.models(generator), "--classes", "0,2", "--n", "1", "--out", str(place.folder / out)]
    assert cli.main([*command, *flags]) == 0
    return np.asarray(Image.open(place.folder / out))


def test_sample_and_its_flags(place, capsys):
    plain = sampled(place, "plain.png", "--steps", "3")
    assert "no CFG" in capsys.readouterr().out
    published = ["--num-steps", "3", "--mode", "sde", "--guidance-high", "0.9", "--cfg-scale", "3"]
    other = sampled(place, "sde.png", *published, "--path-type", "linear")
    assert "CFG 3, t 0 to 0.9" in capsys.readouterr().out
    assert plain.shape == other.shape and (plain != other).any()
    weaker = ["--steps", "3", "--cfg-scale", "2", "--guidance-ckpt", str(place.folder / "weaker")]
    guided = sampled(place, "auto.png", *weaker)
    assert "autoguidance 2, by" in capsys.readouterr().out and (guided != plain).any()
    assert cli.main(["sample", *place.models(), "--classes", "a", "--method", "dopri5"]) == 2
    assert "method must be one of euler, heun, sde" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["sample", *place.models(), "--classes", "a", "--mode", "ode"])
    assert "choose euler or heun" in capsys.readouterr().err


def test_released_weights_need_statistics(place, capsys):
    """In a file under the published names; with the statistics they draw what the run draws."""
    dit = vfmtok.from_pretrained(place.folder / "dit", "generator")
    torch.save({"ema": vfmtok.to_released(dit)}, place.folder / "dit.pt")
    size = ["--gpt-model", "LightningDiT-B/1", "--steps", "3"]
    for field in ("width=32", "depth=1", "heads=2"):
        size += ["--set", f"generator.{field}"]
    vfmtok.save_pretrained(vfmtok.load_released(vfmtok.DiT(dit.config), vfmtok.to_released(dit)), place.folder / "bare")
    for generator, more in (("dit.pt", size), ("bare", ["--steps", "3"])):
        assert cli.main(["sample", *place.models(generator), "--classes", "0,2", *more]) == 2
        error = capsys.readouterr().err
        assert "--latent-stats" in error and error.count("\n") == 1, error
    statistics = place.codes / "stats.safetensors"
    found = sampled(place, "file.png", *size, "--stats-file", str(statistics), generator="dit.pt")
    expected = sampled(place, "run.png", "--steps", "3")
    same = (found == expected).all(2).mean()  # the titles name the models, and the file knows no names of classes
    assert same > 0.8 and (found[-34:, 16:48] == expected[-34:, 16:48]).all()


def test_test_net(place):
    """Samples and their job; a second scale has a folder of its own."""
    folder = place.folder / "samples"
    command = f"--vq-ckpt {place.folder}/tokenizer --gpt-ckpt {place.folder}/dit --sample-dir {folder} --no-fid"
    command += " --num-fid-samples 6 --per-proc-batch-size 4 --image-size-eval 32 --cfg-scale 1,2 --num-steps 2"
    command += " --latent-size 4 --precision bf16 --guidance-low 0.1 --guidance-high 0.9 --cls-cfg-scale 0"
    results = measure_generator(generation_parser().parse_args(command.split()), ALONE)
    assert set(results) == {1.0, 2.0}
    arrays = [np.load(file)["arr_0"] for file in sorted(folder.rglob("*.npz"))]
    assert len(arrays) == 2 and all(array.shape == (6, 32, 32, 3) for array in arrays)
    assert (arrays[0] != arrays[1]).any()


def test_agreement(place):
    out = place.folder / "agreement"
    command = ["agreement", *place.models(), "--data", str(place.data), "--code-path", str(place.codes)]
    command += ["--per-class", "3", "--cfg-scales", "1", "2", "--steps", "2", "--num-workers", "0", "--out", str(out)]
    assert cli.main(command) == 0
    numbers = json.loads((out / "results.json").read_text())["numbers"]
    assert numbers.keys() >= {
        "agreement of real held-out images", "agreement of the floor", "mean latent similarity of held-out images",
        "largest latent similarity, no CFG", "mean latent similarity, CFG 2",
    }  # fmt: skip
    assert all(-1 <= number["value"] <= 1 for number in numbers.values())


def test_export_writes_the_statistics_beside_the_weights(place, capsys, caplog):
    out, folder = place.folder / "released.pt", place.folder / "dit"
    assert cli.main(["export", str(folder), str(out)]) == 0
    file = place.folder / "released_latents_stats.pt"
    assert str(file) in capsys.readouterr().out
    run = vfmtok.from_pretrained(folder, "generator")
    known = vfmtok.from_pretrained(out, config=run.config, part="generator", statistics=file)
    labels = torch.tensor([0, 2])
    drawn = [vfmtok.generate_latents(dit, labels, steps=2) for dit in (run, known)]
    assert not caplog.records and torch.allclose(*drawn, atol=1e-5)
    bare = vfmtok.from_pretrained(out, config=run.config, part="generator")
    assert "mean and standard deviation" in caplog.text
    normalised = run.statistics.normalise(drawn[0])
    assert torch.allclose(vfmtok.generate_latents(bare, labels, steps=2), normalised, atol=1e-4)


def test_low_precision_is_autocast(place):
    """The weights, the statistics and the tables stay float32; the picture is near."""
    exact = sampled(place, "fp32.png", "--steps", "3")
    rounded = sampled(place, "bf16.png", "--steps", "3", "--precision", "bf16")
    assert (exact != rounded).any() and np.abs(exact.astype(int) - rounded.astype(int)).mean() < 3


def test_published_flags_of_test_net(place):
    command = f"--vq-ckpt {place.folder}/tokenizer --gpt-ckpt {place.folder}/dit --no-fid"
    parsed = [generation_parser().parse_args([*command.split(), "--label-sampling", x]) for x in ("equal", "random")]
    assert [args.classes for args in parsed] == ["balanced", "random"]
    for flag, message in ((["--tf32"], "--tf32"), (["--cls", "768"], "has token_dim None, not 768")):
        with pytest.raises(vfmtok.ConfigError, match=message):
            measure_generator(generation_parser().parse_args([*command.split(), *flag]), ALONE)


def test_pixels_are_truncated_from_the_offset_that_is_asked_for(place):
    """Half a level darker with 127.5: no pixel brighter, about half of them one level darker."""
    folder = place.folder / "offsets"
    command = f"--vq-ckpt {place.folder}/tokenizer --gpt-ckpt {place.folder}/dit --sample-dir {folder} --no-fid"
    command += " --num-fid-samples 4 --per-proc-batch-size 4 --image-size-eval 32 --steps 2"
    arrays = []
    for offset in ("128", "127.5"):
        measure_generator(generation_parser().parse_args([*command.split(), "--uint8-offset", offset]), ALONE)
        (file,) = (path for path in folder.rglob("*.npz") if (offset in str(path)) == (offset == "127.5"))
        arrays.append(np.load(file)["arr_0"].astype(int))
    difference = arrays[0] - arrays[1]
    assert set(np.unique(difference)) == {0, 1} and 0.4 < difference.mean() < 0.6
