"""Rows whose generator learns from images instead of a cache of codes, as REG does."""

import json
from dataclasses import replace

import pytest
import tiny_vfmae
import yaml
from training_runs import logged

import vfmtok
from vfmtok.commands.study import PARSERS
from vfmtok.study.speed import Speed, estimate
from vfmtok.study.steps import Plan

ENCODER = {"name": "test_vit", "image_size": 64, "levels": [6], "weights": "random"}  # 4 x 4 cells of 64 channels
REG = {
    "kind": "diffusion", "width": 32, "depth": 2, "heads": 2, "time_runs": "to_noise", "norm": "layer", "mlp": "gelu",
    "rope": False, "times": "uniform", "cosine_weight": 0.0, "token_dim": 64, "align_depth": 1, "align_dims": [64],
    "align_hidden": 32, "align_encoder": ENCODER,
}  # fmt: skip
AGREEMENT = "--per-class 2 --cfg-scales 1 2 --steps 4 --num-workers 0"
DATA, KINDS = {"num_workers": 0}, ("tokenizer", "reconstruction", "codes", "generator", "agreement", "images")


@pytest.fixture
def with_reg(tmp_path):
    """Changes of the tiny study: one row, a VFMAE with a REG."""
    losses = {"loss": {"perceptual": "none"}, "adversarial": {"discriminator": "none"}}
    steps = {"optimizer": {"lr": 1e-3, "steps": 4, "warmup_steps": 1}, "run": {"validate_every": 4}, "data": DATA}
    (tmp_path / "vfmae.yaml").write_text(
        yaml.safe_dump({"tokenizer": {"kind": "vfmae", **tiny_vfmae.CONFIG}, **losses, **steps})
    )
    (tmp_path / "reg.yaml").write_text(yaml.safe_dump({"generator": REG, "pictures": {"every": 0}, **steps}))
    row = {"name": "REG", "tokenizer": str(tmp_path / "vfmae.yaml"), "generator": str(tmp_path / "reg.yaml")}
    columns = [
        {"name": "loss", "of": "generator", "number": "validation/loss", "better": "lower"},
        {"name": "agreement, CFG 2", "of": "agreement"},
    ]
    return {"rows": [row], "columns": columns, "agreement": AGREEMENT, "generation": None}


@pytest.mark.slow
def test_its_study_ends_in_its_page(with_reg, study, vfmtok_study, images, tmp_path):
    code, said, errors = vfmtok_study(study(**with_reg))
    assert code == 0, errors
    assert "measuring 6 steps: generator of REG" in said and "unknown time" not in said
    folder = tmp_path / "out/steps"
    assert sorted(path.name.rpartition("-")[0] for path in folder.iterdir()) == sorted(KINDS)
    (run,) = folder.glob("generator-*")
    data = yaml.safe_load((run / "recipe.yaml").read_text())["data"]
    assert data["path"] == str(images) and data["code_path"] is data["val_code_path"] is None
    terms = {name: logged(run / "out", f"validation/{name}")[4] for name in ("loss", "mse", "token", "align")}
    assert terms["loss"] == pytest.approx(terms["mse"] + terms["token"] + terms["align"])
    numbers = json.loads((tmp_path / "out/table.json").read_text())["rows"]["REG"]["numbers"]
    assert numbers["loss"]["mean"] == terms["loss"] and 0 <= numbers["agreement, CFG 2"]["mean"] <= 1
    page = (tmp_path / "out/study.html").read_text()
    assert "Not there yet" not in page and page.count("data:image/png;base64,") == 4
    commands = len(vfmtok_study.commands)
    assert vfmtok_study(study(**with_reg))[0] == 0 and len(vfmtok_study.commands) == commands


def test_images_are_encoded_only_for_what_samples_are_compared_with(with_reg, plan):
    assert [step.kind for step in plan(**with_reg).steps] == list(KINDS)
    without = plan(**{**with_reg, "agreement": None, "columns": []})
    assert [step.kind for step in without.steps] == ["tokenizer", "reconstruction", "generator", "images"]


def test_its_generator_depends_on_images_crops_and_tokenizer(with_reg, plan):
    def generator(found: Plan):
        return found.by_row["REG", 0]["generator"]

    here = plan(**with_reg)
    assert generator(plan("/elsewhere", **with_reg)).key == generator(here).key
    other = Plan(here.study, here.rows, replace(here.data, fingerprints=("others", "val")), here.folder, here.asked)
    assert generator(other).key != generator(here).key
    for changed in (["data.flip=false"], ["generator.align_encoder.levels=[3]"]):
        assert generator(plan(of_generator=changed, **with_reg)).key != generator(here).key
    assert generator(plan(of_generator=["data.num_workers=3"], **with_reg)).key == generator(here).key
    wider = generator(plan(of_tokenizer=["tokenizer.dim=96"], **with_reg))  # it encodes at every step
    assert wider.key != generator(here).key and wider.pace != generator(here).pace
    longer = generator(plan(of_tokenizer=["optimizer.steps=9"], **with_reg))
    assert longer.key != generator(here).key  # by the step before it


def test_sampling_is_estimated_by_its_steps(with_reg, plan):
    found = plan(**with_reg)
    times = {s.kind: estimate(s, lambda training: Speed(1.0, 0.0), found.data, PARSERS) for s in found.steps}
    images, steps = 2 * 2 * 2, 4  # of each class, classes, scales
    assert times["agreement"] == pytest.approx(images * steps * 2 / 3)
    assert times["images"] == pytest.approx(12 * 250 * 2 / 3)  # REG's own steps


def test_it_is_measured_on_given_weights_too(with_reg, study, vfmtok_study, tmp_path):
    (row,) = with_reg["rows"]
    vfmtok.save_pretrained(tiny_vfmae.tokenizer(), tmp_path / "given")
    rows = [{**row, "weights": str(tmp_path / "given")}]
    code, said, errors = vfmtok_study(study(**{**with_reg, "rows": rows, "tokenizer_set": []}), "--dry-run")
    assert code == 0, errors
    assert "measuring 6 steps: generator of REG" in said
