"""How long trainings take on a machine of a given speed, and how they are shortened to fit."""

import json

import pytest

from vfmtok.cli import main
from vfmtok.commands.study import PARSERS, open_data
from vfmtok.errors import ConfigError
from vfmtok.study import speed as speed_of
from vfmtok.study.budget import forecast, settings_of
from vfmtok.study.config import RowConfig, StudyConfig
from vfmtok.study.rows import Changes, resolve
from vfmtok.study.speed import Speed, estimate
from vfmtok.study.steps import Asked, Plan


@pytest.fixture
def plan(sample_set, tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    study = StudyConfig(
        data=str(sample_set),
        tokenizer="configs/vfmtok/emoji64.yaml",
        generator="configs/vfmtok/emoji64_gpt.yaml",
        tokenizer_set=("optimizer.steps=1000", "optimizer.warmup_steps=100", "codebook.continuous_steps=300"),
        generator_set=("optimizer.steps=500",),
        reconstruction="--no-fid --no-lpips",
        rows=(RowConfig(name="one"),),
    )
    rows = resolve(study, PARSERS)
    return Plan(study, rows, open_data(study.data, tmp_path), tmp_path, Asked("", (), Changes()))


def speed(step):
    """A tokenizer's 1,000 steps of 8 take 1,000 s, a generator's 500 of 32 take 500 s, each after 10 s."""
    return Speed({"tokenizer": 8.0, "generator": 32.0}[step.kind], 10.0)


def of(plan, minutes=None):
    return forecast(plan.steps, lambda s: estimate(s, speed, plan.data, PARSERS), speed, plan.data, minutes)


def test_all_of_it(plan):
    whole = of(plan)
    parts = [estimate(step, speed, plan.data, PARSERS) for step in plan.steps]
    assert whole.seconds == pytest.approx(sum(parts)) and whole.seconds > 1520
    assert whole.share == 1 and [t["steps"] for t in whole.trainings] == [1000, 500]
    assert all(training["set"] == [] for training in whole.trainings)
    assert of(plan, minutes=1000) == whole.__class__(whole.seconds, 1000, 1.0, whole.trainings)  # more changes nothing


def test_shorter_trainings_fit(plan):
    whole = of(plan)
    rest = whole.seconds - 1500
    minutes = (rest + 750) / 60
    half = of(plan, minutes)
    assert half.share == pytest.approx(0.5) and half.seconds == pytest.approx(60 * minutes)
    tokenizer, generator = half.trainings
    assert tokenizer["set"] == ["optimizer.steps=500", "optimizer.warmup_steps=50", "codebook.continuous_steps=150"]
    assert generator["set"][0] == "optimizer.steps=250"
    assert settings_of(plan.steps[0], 1.0, plan.data) == []


def test_too_few_minutes_are_refused(plan):
    whole = of(plan)
    with pytest.raises(
        ConfigError, match=rf"1.0 are left, and here it takes .* at the least, {whole.seconds / 60:.1f} in full"
    ):
        of(plan, 1)


def test_the_command_measures_this_machine(sample_set, tmp_path, capsys, root, monkeypatch):
    monkeypatch.chdir(root)
    small = [
        "--tokenizer-set",
        "optimizer.steps=40",
        "--tokenizer-set",
        "codebook.continuous_steps=10",
        "--generator-set",
        "optimizer.steps=20",
    ]
    words = ["pace", "configs/vfmtok/emoji64.yaml", "--generator", "configs/vfmtok/emoji64_gpt.yaml"]
    assert main([*words, "--data", str(sample_set), *small, "--out", str(tmp_path / "pace.json")]) == 0
    said = capsys.readouterr().out
    assert "tokenizer: 40 steps\n" in said and "generator: 20 steps\n" in said and " on this machine" in said
    found = json.loads((tmp_path / "pace.json").read_text())
    assert found["share"] == 1 and found["seconds"] > 0 and found["minutes"] is None


def test_stages_are_measured_alone(sample_set, tmp_path, root, monkeypatch):
    """Each begins with the weights of the one before, which are not there yet. (What measures is counted, not run.)"""
    monkeypatch.chdir(root)
    monkeypatch.setattr(speed_of, "measure", lambda step, runner: Speed(step.recipe.run.global_batch / 0.01, 1.0))
    stages = [f"configs/vfm_vae/emoji64_stage{number}.yaml" for number in range(4)]
    words = ["--generator", "configs/diffusion/dit_small.yaml", "--data", str(sample_set), "--steps", "10"]
    assert main(["pace", *stages, *words, "--minutes", "1", "--out", str(tmp_path / "pace.json")]) == 0
    found = json.loads((tmp_path / "pace.json").read_text())
    assert [training["kind"] for training in found["trainings"]] == ["tokenizer"] * 4 + ["generator"]
    assert 0 < found["share"] < 1 and found["seconds"] <= 60.1
    assert all(training["set"][0].startswith("optimizer.steps=") for training in found["trainings"])
