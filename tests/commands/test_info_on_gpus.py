import json

import pytest
from tiny_gpt import tiny_config

from vfmtok.cli import main
from vfmtok.config import save_config
from vfmtok.forecast.machines import GPUS, read_machines
from vfmtok.forecast.prediction import PUBLISHED, in_precision, training_pass
from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import RunConfig


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    save_config(GeneratorRecipe(generator=tiny_config(), run=RunConfig(global_batch=64)), path)
    return path


def facts(capsys, *arguments) -> list[dict]:
    assert main(["info", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["on"]


def test_a_recipe_on_gpus(capsys, recipe):
    (found,) = facts(capsys, recipe, "--on", "h100x8", "--images", 6400, "--set", "optimizer.epochs=10")
    assert found["steps"] == 1000 and found["batch_per_gpu"] == 8 and found["fits"] and not found["advice"]
    assert found["days"] == pytest.approx(1000 * found["step_seconds"] / 86400)
    assert found["cost"] == pytest.approx(24 * found["days"] * 8 * GPUS["h100"].price)
    parameters = 4 * sum(part["parameters"] for part in json.loads(_json(capsys, recipe))["parts"])
    assert found["state_bytes"]["parameters"] == parameters
    (dear,) = facts(capsys, recipe, "--on", "h100x8", "--images", 6400, "--set=optimizer.epochs=10", "--price", 100)
    assert dear["cost"] == pytest.approx(found["cost"] / GPUS["h100"].price * 100)


def test_what_compiling_would_gain(capsys, recipe):
    command = (recipe, "--on", "h100", "--images", 6400)
    (eager,), (compiled,) = facts(capsys, *command), facts(capsys, *command, "--set", "run.compile=true")
    assert compiled["days"] == compiled["days_compiled"] == eager["days_compiled"] < eager["days"]
    for more, said in ((), True), (("--set", "run.compile=true"), False):
        assert main(["info", *map(str, command), *more]) == 0
        assert ("(run.compile)" in capsys.readouterr().out) == said


def _json(capsys, recipe) -> str:
    assert main(["info", str(recipe), "--json"]) == 0
    return capsys.readouterr().out


def test_all_gpus_of_the_table_and_a_page_for_people(capsys, recipe):
    found = facts(capsys, recipe, "--on", "allx2")
    assert [(each["gpu"], each["gpus"]) for each in found] == [(name, 2) for name in GPUS]
    for on in ("all", "rtx4090"):
        assert main(["info", str(recipe), "--on", on]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any("rtx4090" in line for line in lines) and max(map(len, lines)) <= 140


def test_names_of_machines():
    assert read_machines("rtx4090").count == 1 and read_machines("RTX4090x2").gpu is GPUS["rtx4090"]
    assert read_machines("a100-40x16").count == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--on", "h1000x8"], "closest match: 'h100'"),
        (["--on", "h100x0"], "h100x0"),
        (["--on", "h100x7"], "not divisible by 7"),
        (["--on", "h100", "--utilisation", "1.5"], "--utilisation must be in (0,1]"),
        (["--on", "h100", "--set", "run.batch=3"], "run.batch"),
        (["--set", "run.global_batch=3"], "run"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, recipe, arguments, words):
    assert main(["info", str(recipe), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vfmtok/emoji64", "vqgan/emoji64", "hita/emoji64", "vfmae/emoji64", "vfm_vae/emoji64_stage0",
        "vfm_vae/emoji64_stage3", "hita/emoji64_gpt", "vfmtok/emoji64_rar", "diffusion/dit_dh_small",
    ],
)  # fmt: skip
def test_recipes_of_every_family(capsys, root, name):
    (found,) = facts(capsys, root / f"configs/{name}.yaml", "--on", "rtx4090", "--images", 3000)
    assert found["fits"] and found["flops_per_step"] > 1e9 and 0 < found["of_peak"] < 1


@pytest.mark.slow
def test_flops_of_published_runs_are_counted_here(root):
    for run in PUBLISHED:
        assert (root / run.recipe).is_file()
    (of_gpt,) = (run for run in PUBLISHED if run.section == "generator")
    large = GPTConfig(n_layer=24, n_head=16, dim=1024)
    counted = training_pass(in_precision(GeneratorRecipe(generator=large))).counted
    assert counted.flops(1) == pytest.approx(of_gpt.flops, rel=1e-3)
