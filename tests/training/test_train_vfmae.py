"""A continuous tokenizer in the loop: no losses nor usage of a codebook; and what is done with its run."""

import json
import shutil

import numpy as np
import pytest
import tiny_vfmae
import torch
from training_runs import finish, logged, start

from vfmtok.cli import main
from vfmtok.commands import evaluation_flags
from vfmtok.commands.evaluation_scripts import measure_tokenizer
from vfmtok.config import config_from_dict, config_to_dict, save_config
from vfmtok.distributed import World
from vfmtok.errors import ConfigError
from vfmtok.pretrained.loading import load_tokenizer
from vfmtok.pretrained.names import from_pretrained
from vfmtok.tokenizers.vfmae.config import VFMAEConfig
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.weights.checkpoint import newest_checkpoint


@pytest.fixture
def vfmae_recipe(tiny_recipe):
    def build(*overrides: str, name: str = "run", **changes) -> TokenizerRecipe:
        tree = config_to_dict(tiny_recipe(*overrides, name=name))
        model = config_from_dict(tiny_vfmae.CONFIG | changes, VFMAEConfig)
        return config_from_dict(tree | {"tokenizer": config_to_dict(model)}, TokenizerRecipe)

    return build


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_continued_run_is_the_uninterrupted_one(vfmae_recipe, train):
    """With dropout and a discriminator, whatever has a state; it learns, and logs nothing of a codebook."""
    recipe = vfmae_recipe(
        "optimizer.steps=9", "run.save_every=5", "adversarial.discriminator=patchgan", "adversarial.start=4",
        "adversarial.update_start=2", "adversarial.adaptive_weight=true",
        decoder=tiny_vfmae.CONFIG["decoder"] | {"attention_dropout": 0.1},
    )  # fmt: skip
    folder = train(recipe)
    steps = [line for line in log_of(folder) if "loss/total" in line]
    assert steps[-1]["loss/feature"] < steps[0]["loss/feature"] and steps[-1]["loss/adversarial"] != 0
    assert not [name for line in log_of(folder) for name in line if "codebook" in name or "vq" in name]
    whole = load_tokenizer(folder, prefer="model").state_dict()
    shutil.rmtree(newest_checkpoint(folder))
    (folder / "finished").unlink()
    assert newest_checkpoint(folder).name.endswith("5")
    parts = load_tokenizer(train(recipe), prefer="model").state_dict()
    assert newest_checkpoint(folder).name.endswith("9")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_is_measured_shown_and_given_away(vfmae_recipe, train, sample_set, tmp_path, capsys):
    """vqgan_test.py, `vfmtok reconstruct`, `info` and `export` of one run; none misses a codebook."""
    folder = train(vfmae_recipe("optimizer.steps=2", encoder=tiny_vfmae.NO_CLASS_TOKEN))
    tokenizer = load_tokenizer(folder)

    arguments = ["--vq-ckpt", folder, "--anno-file", sample_set, "--output_dir", tmp_path / "measured"]
    parser = evaluation_flags.reconstruction_parser()
    args = parser.parse_args([*map(str, arguments), "--no-fid", "--no-lpips", "--num_workers", "0",
                              "--image-size-eval", "32"])  # fmt: skip
    numbers = measure_tokenizer(args, World(0, 1, torch.device("cpu")), count=6)["numbers"]
    assert "PSNR" in numbers and not [name for name in numbers if "usage" in name]
    assert (tmp_path / "measured/sampling_points.png").exists()

    image = tmp_path / "measured" / "reconstructions.png"
    command = ["--vq-ckpt", str(folder), "--out"]
    assert main(["reconstruct", str(image), *command, str(tmp_path / "seen"), "--points", "--tokens", "0,15"]) == 0
    with np.load(tmp_path / "seen/latents.npz") as archive:
        assert archive["latents"].shape == (1, 6, 4, 4) and archive["latents"].dtype == np.float32
    assert main(["reconstruct", str(tmp_path / "seen/latents.npz"), *command, str(tmp_path / "again")]) == 0
    capsys.readouterr()
    points = [*command, str(tmp_path / "more"), "--points", "--tokens", "16"]
    assert main(["reconstruct", str(image), *points]) == 2 and "0 to 15" in capsys.readouterr().err

    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["codebook_size"] is None and facts["flops"] > 0

    assert main(["export", str(folder), str(tmp_path / "given"), "--kind", "pretrained"]) == 0
    given = from_pretrained(str(tmp_path / "given"))
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in tokenizer.state_dict().items())
    assert "latents of 6 x 4 x 4" in (tmp_path / "given/README.md").read_text()


def test_weights_of_losses_that_are_not_there_are_refused(vfmae_recipe, train):
    with pytest.raises(ConfigError, match="codebook_weight"):
        train(vfmae_recipe("loss.codebook_weight=0.5"))


def test_style_is_for_ids(vfmae_recipe, train, tmp_path, capsys):
    folder = train(vfmae_recipe("optimizer.steps=1"))
    capsys.readouterr()
    images = ["--content", str(tmp_path / "a.png"), "--style", str(tmp_path / "a.png")]
    assert main(["style", *images, "--vq-ckpt", str(folder), "--out", str(tmp_path / "out.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "latents of 6 x 4 x 4" in said


@pytest.mark.slow
def test_two_processes_are_one(vfmae_recipe, tmp_path):
    runs = {}
    for name, processes in (("one", 1), ("two", 2)):
        save_config(vfmae_recipe("optimizer.steps=6", "run.validate_every=6", name=name), tmp_path / f"{name}.yaml")
        runs[name] = start(tmp_path / f"{name}.yaml", processes=processes)
    for process in runs.values():
        finish(process)
    one, two = (logged(tmp_path / name) for name in runs)
    assert len(one) == 6 and two == pytest.approx(one, rel=1e-5)
