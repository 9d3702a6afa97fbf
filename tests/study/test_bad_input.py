"""What is wrong with a study is one line that names the study, the row and the key, before anything is trained."""

import pytest

ROW = {"name": "x"}


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({}, ["--row", "bse"], "study tiny: there is no row 'bse' (closest match: 'base')"),
        ({}, ["--row", "3"], "study tiny: there is no row '3'"),
        ({"rwos": []}, [], "unknown key 'rwos' (closest match: 'rows')"),
        ({"rows": []}, [], "rows must be one or more, got none"),
        ({"rows": [ROW, ROW]}, [], "rows need names that differ, got 'x'"),
        ({"rows": [{**ROW, "tokenizer_sett": []}]}, [], "unknown key 'rows[0].tokenizer_sett'"),
        (
            {"rows": [ROW, {"name": "y", "tokenizer_set": ["tokenizer.sampler.num_tokens=15"]}]},
            [],
            "row 'y': tokenizer {tokenizer}: configuration: sampler.num_tokens must be a square number, got 15",
        ),
        (
            {"rows": [{**ROW, "tokenizer_set": ["optimizer.lrr=1"]}]},
            [],
            "row 'x': tokenizer {tokenizer}: configuration: unknown key 'optimizer.lrr' (closest match:",
        ),
        ({"rows": [{**ROW, "tokenizer": "no.yaml"}]}, [], "row 'x': tokenizer no.yaml: there is no recipe no.yaml"),
        (
            {"rows": [{**ROW, "generator_set": ["generator.num_tokens=64"]}]},
            [],
            "row 'x': generator {generator}: the generator makes 64 tokens of 64 codes, the tokenizer has 16 tokens",
        ),
        (
            {"rows": [{**ROW, "tokenizer": "configs/vfmae/emoji64.yaml", "tokenizer_set": []}], "tokenizer_set": []},
            [],
            "row 'x': generator {generator}: generator.kind gpt learns ids, got latents of",
        ),
        ({"rows": [{**ROW, "published": {"gFID": 1}}]}, [], "row 'x': published.gFID: there is no such column"),
        ({"rows": [{**ROW, "published": {"rFID": "low"}}]}, [], "rows[0].published.rFID must be a number, got 'low'"),
        ({"reconstruction": "--no-lpip"}, [], "reconstruction: unknown flag --no-lpip (closest match: --"),
        ({"generation": "--num-fid-samples some"}, [], "generation: argument --num-fid-samples: a positive whole"),
        ({"columns": [{"name": "a", "of": "agreement"}], "rows": [ROW]}, [], "column 'a' needs the flags of agreement"),
        ({"columns": [{"name": "bits", "of": "row"}], "rows": [ROW]}, [], "column 'bits': of a row there are bits per"),
        ({"rows": [{**ROW, "agreement": "--per-calss 2"}]}, [], "row 'x': agreement: unknown flag --per-calss"),
        ({}, ["--set", "seeds=[1,1]"], "seeds must differ"),
        ({}, ["--tokenizer-set", "run.seeed=1"], "row 'base': tokenizer {tokenizer}: configuration: unknown key"),
        ({"data": "/no/images"}, [], "no images at /no/images: give --data"),
    ],
)
def test_mistakes_are_found_before_anything_is_done(study, vfmtok_study, tmp_path, changes, flags, message):
    code, said, errors = vfmtok_study(study(**changes), *flags)
    paths = {name: tmp_path / f"{name}.yaml" for name in ("tokenizer", "generator")}
    assert code == 2 and errors.count("\n") == 1 and message.format(**paths) in errors
    assert not said and not vfmtok_study.commands and not (tmp_path / "out/steps").exists()


def test_a_recipe_that_cannot_be_trained_here_is_found_before_the_first_training(study, vfmtok_study, tmp_path):
    rows = [ROW, {"name": "no weights", "tokenizer_set": ["tokenizer.encoder.weights=/no/such.pth"]}]
    code, _, errors = vfmtok_study(study(rows=rows))
    assert code == 2 and errors.count("\n") == 1 and "/no/such.pth" in errors
    assert "the tokenizer of no weights (seed 0) can't be trained here: vq_train.py: error:" in errors
    assert not (tmp_path / "out/steps").exists()
    assert not list((tmp_path / "out").glob("measured-*"))
