"""Manifests and `vfmtok reproduce`: the published tables, a strict schema, passed and failed by the bands."""

import numpy as np
import pytest
import tiny_models
import yaml

import vfmtok
from vfmtok import cli
from vfmtok.commands import evaluation_flags as flags
from vfmtok.commands import flags as shared_flags
from vfmtok.commands.reproduce_verdict import verdict
from vfmtok.errors import ConfigError
from vfmtok.evaluation.reconstruction import Measures, evaluate_reconstruction
from vfmtok.pretrained.manifest import FOLDER, find_manifest, manifest_names
from vfmtok.pretrained.published import PUBLISHED

# arXiv 2507.08441, Tables 2, 3 and 10: gFID, sFID, gIS, Pre., Rec. with and without CFG.
TABLES = {
    "gpt-b": ("3.43 5.88 252.2 0.85 0.53", "3.09 5.67 173.6 0.80 0.58"),
    "gpt-l": ("2.75 5.58 278.8 0.84 0.57", "2.11 5.46 230.1 0.82 0.60"),
    "gpt-xl": ("2.41 5.53 276.8 0.83 0.59", "2.10 5.54 258.1 0.82 0.60"),
    "gpt-xxl": ("2.19 5.53 278.0 0.83 0.60", "1.95 5.65 259.3 0.82 0.62"),
    "gpt-3b": ("2.07 6.23 280.4 0.81 0.62", "2.04 5.43 267.6 0.82 0.61"),
}
# gFID with and without CFG in the README of the released files, where it is not the paper's.
README = {"gpt-l": (2.76, 2.15), "gpt-xl": (2.38, 2.06), "gpt-xxl": (2.28, 2.09), "gpt-2b": (2.27, 2.20)}
NAMES = [f"{size}-{row}" for size in (*TABLES, "gpt-2b") for row in ("cfg", "no-cfg")] + ["tokenizer"]
EXPECTED = {
    **{f"{size}-cfg": rows[0] for size, rows in TABLES.items()},
    **{f"{size}-no-cfg": rows[1] for size, rows in TABLES.items()},
    "tokenizer": "0.89 215.4 100",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_published_row_has_its_manifest(name):
    manifest = find_manifest(name)
    size, guided = name.removesuffix("-no-cfg").removesuffix("-cfg"), not name.endswith("-no-cfg")
    paper = [float(text) for text in EXPECTED.get(name, "").split()]
    if size in README:
        first, *others = manifest.expected
        assert first.name == "gFID" and first.value == README[size][not guided] and first.binding
        assert ([first.paper] if paper else []) + [number.value for number in others] == paper
        assert not any(number.binding for number in others) and "README" in manifest.source
    else:
        assert [number.value for number in manifest.expected] == paper
        assert all(number.binding and number.paper is None for number in manifest.expected)
    assert manifest.count == 50_000 and "arXiv 2507.08441" in manifest.source and manifest.band_reason
    parts = PUBLISHED[manifest.tokenizer].parts
    assert "tokenizer" in parts
    if manifest.task == "generation":
        assert manifest.gpt_model in parts and manifest.gpt_model.lower() == size
        assert (manifest.sampling.cfg_scale == 1) == (not guided)
        assert ("without CFG" in manifest.title) == (not guided)


def test_there_are_no_others():
    others = ("llamagen-", "hita-", "rar-", "vfmae-", "ditdh-", "vfmvae-")  # see test_published_tables.py
    assert [name for name in manifest_names() if not name.startswith(others)] == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_scripts_take_what_a_dry_run_tells(name, capsys):
    assert cli.main(["reproduce", name, "--dry-run"]) == 0
    told = capsys.readouterr().out
    script, *arguments = told.splitlines()[-1].split("as         python ")[1].split()
    parser = {"vqgan_test.py": flags.reconstruction_parser, "test_net.py": flags.generation_parser}[script]()
    args, manifest = parser.parse_args(arguments), find_manifest(name)
    assert args.image_size_eval == manifest.image_size and args.vq_ckpt in PUBLISHED
    if manifest.task == "generation":
        samples = flags.samples_of(args, tiny_models.gpt())
        assert samples.count == manifest.count and float(args.cfg_scale) == manifest.sampling.cfg_scale
        for field in ("precision", "classes", "seed"):
            assert getattr(samples, field) == getattr(manifest.sampling, field)
        for field in ("cfg_interval", "top_k", "top_p", "temperature"):
            assert getattr(samples.sampling, field) == getattr(manifest.sampling, field)
    assert all(f"{number.name} {number.value:g} ± {number.band:g}" in told for number in manifest.expected)


@pytest.mark.parametrize(("num", "whole"), [([], True), (["--num", "50000"], True), (["--num", "100"], False)])
def test_a_trial_does_not_measure_a_whole_dataset(num, whole, capsys):
    assert cli.main(["reproduce", "llamagen-tokenizer-vq16-256", "--data", "imagenet", "--dry-run", *num]) == 0
    assert ("--reference imagenet" in capsys.readouterr().out) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokeniser": "x"}, r"unknown key 'tokeniser' \(closest match: 'tokenizer'\)"),
        ({"expected": []}, "expected must name a number"),
        (
            {"expected": [{"name": "FID", "value": 1.0, "band": 0.1}]},
            r"one of gFID, .* \(closest match: 'sFID'\), got FID",
        ),
        ({"expected": [{"name": "gFID", "value": 1.0, "band": 0.0}]}, "band of gFID must be positive"),
        ({"expected": [{"name": "gFID", "value": "low", "band": 0.1}]}, r"value must be a number"),
        ({"task": "sampling"}, "task must be one of reconstruction, generation"),
        ({"task": "reconstruction"}, "expected.name must be one of rFID"),
        ({"gpt_model": "GPT-XXS"}, "no generator is called 'GPT-XXS'.*RAR-XL"),
        ({"resize": "pillow"}, "resize does not fit task generation"),
        ({"gpt": None}, "gpt does not fit task generation"),
        ({"count": 0}, "count must be"),
        (
            {"expected": [{"name": "IS", "value": 1.0, "band": 0.1, "binding": False}]},
            "must name a number that decides",
        ),
    ],
)
def test_the_schema_is_strict(tmp_path, change, message):
    tree = yaml.safe_load((FOLDER / "gpt-b.yaml").read_text())
    row = tree.pop("rows")["cfg"]
    tree |= {"expected": row["expected"], "sampling": tree["sampling"] | row["sampling"]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**tree, **change}))
    with pytest.raises(ConfigError, match=message):
        find_manifest(str(tmp_path / "own.yaml"))


def results_of(values: dict[str, float], count: int = 50_000) -> dict:
    numbers = {name: {"value": value, "protocol": "p", "digits": 3} for name, value in values.items()}
    return {"numbers": numbers, "job": {"count": count}}


def test_the_verdict():
    manifest = find_manifest("gpt-b-no-cfg")
    values = {f"{number.name} (no CFG)": number.value for number in manifest.expected}
    lines, failed = verdict(manifest, results_of(values))
    assert failed is None and lines[-1] == "  PASSED: 5 of the 5 deciding numbers lie within their bands"
    edge = {**values, "gFID (no CFG)": 3.09 + 0.0999, "IS (no CFG)": 173.6 - 3.49}
    assert verdict(manifest, results_of(edge))[1] is None
    for value in (3.09 + 0.11, 3.09 - 0.11, float("nan")):  # better than published is not reproduced either
        lines, failed = verdict(manifest, results_of({**values, "gFID (no CFG)": value}))
        assert lines[-1] == "  FAILED: 4 of the 5 deciding numbers lie within their bands"
        assert failed.startswith("gFID is ")
    for number in manifest.expected:  # the edges belong to the band, whatever their binary digits
        for value in (number.value - number.band, number.value + number.band):
            for written in (value, round(value, 3)):
                assert verdict(manifest, results_of({**values, f"{number.name} (no CFG)": written}))[1] is None
    lines, failed = verdict(manifest, results_of({**values, "gFID (no CFG)": None}))  # what results.json has of nan
    assert lines[-1].startswith("  FAILED: ") and failed.startswith("gFID is nan")
    few = results_of({**values, "gFID (no CFG)": None}, count=10)
    assert verdict(manifest, few, trial=True)[1] is None
    assert verdict(manifest, few)[1] == "10 images instead of the published 50,000"  # a dataset that is not whole
    lines, failed = verdict(manifest, results_of({**values, "gFID (no CFG)": 9.0}, count=1000), trial=True)
    assert failed is None and "nothing is passed or failed: 1,000 images instead of the published 50,000" in lines[-1]
    del values["Rc (no CFG)"]
    assert verdict(manifest, results_of(values))[1] == "Rc was not measured"


def test_what_is_of_another_run_decides_nothing():
    manifest = find_manifest("gpt-xxl-no-cfg")
    far = {f"{number.name} (no CFG)": number.value * 2 for number in manifest.expected if not number.binding}
    lines, failed = verdict(manifest, results_of({"gFID (no CFG)": 2.05, **far}))
    assert failed is None and any("2.09 ± 0.1 (paper 1.95): passed" in line for line in lines)
    assert any("published 259.3 ± 5.2: outside, decides nothing" in line for line in lines)
    assert lines[-1] == "  PASSED: 1 of the 1 deciding numbers lie within their bands"
    few = verdict(manifest, results_of({"gFID (no CFG)": 2.05, **far}, count=10), trial=True)[0]
    assert any("published 259.3 ± 5.2: not comparable, decides nothing" in line for line in few)
    assert verdict(manifest, results_of({"gFID (no CFG)": 2.05}))[1] is None
    assert verdict(manifest, results_of({"gFID (no CFG)": 1.95, **far}))[1].startswith("gFID is 1.950")


def test_names_of_several_words_are_told_once():
    manifest = find_manifest("llamagen-tokenizer-vq16-384")
    lines, failed = verdict(manifest, results_of({"rFID": 0.94, "codebook usage": 99.7}))
    assert failed is None
    assert "  codebook usage  99.700, published 97 ± 0.5 (paper 99.7): outside, decides nothing" in lines


def test_rows_of_a_file_of_one_s_own(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text((FOLDER / "gpt-b.yaml").read_text())
    assert find_manifest(f"{file}:cfg") == find_manifest("gpt-b-cfg")
    for name in (str(file), f"{file}:none"):
        with pytest.raises(ConfigError, match="has the rows cfg, no-cfg: name one"):
            find_manifest(name)


# --------------------------------------------------------------------------------------
# Runs
# --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A saved tokenizer and generator, a dataset, and manifests of them."""
    folder = tmp_path_factory.mktemp("own")
    tiny_models.write_models(folder)
    encoder = f"encoder.weights={folder / 'encoder.pt'}"
    tokenizer = tiny_models.tokenizer()
    with pytest.warns(UserWarning, match="the frozen encoder is not saved"):
        vfmtok.save_pretrained(tokenizer, folder / "tokenizer")
    vfmtok.save_pretrained(tiny_models.gpt(), folder / "gpt")
    records = tiny_models.write_dataset(folder / "data")
    results = evaluate_reconstruction(
        tokenizer, records, folder / "direct", tiny_models.WORLD, Measures(), size=32, batch=4, num_workers=0
    )
    return folder, encoder, tiny_models.values(results)


def write_manifest(path, folder, **changes):
    tree = {
        "title": "own", "source": "here", "task": "reconstruction", "tokenizer": str(folder / "tokenizer"),
        "count": tiny_models.COUNT, "image_size": 32, "reference": "originals", "evaluator": "ours", "band_reason": "b",
    }  # fmt: skip
    path.write_text(yaml.safe_dump({**tree, **changes}))
    return str(path)


def test_a_tokenizer_s_number_passes_fails_or_is_not_compared(own, tmp_path, capsys, one_thread):
    folder, encoder, values = own
    numbers = [{"name": name, "value": values[name], "band": 1e-6} for name in ("PSNR", "codebook usage")]
    common = ["--data", str(folder / "data"), "--no-fid", "--set", encoder, "--results-dir", str(tmp_path / "results")]
    path = write_manifest(tmp_path / "same.yaml", folder, expected=numbers)
    assert cli.main(["reproduce", path, "--num", "14", *common]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("  PASSED: ")
    numbers[0]["value"] += 1
    path = write_manifest(tmp_path / "other.yaml", folder, expected=numbers)
    assert cli.main(["reproduce", path, "--num", "14", *common]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("  FAILED: ") and "own: FAILED, PSNR is" in said.err
    assert cli.main(["reproduce", path, "--num", "6", *common]) == 0
    assert "nothing is passed or failed: 6 images instead of the published 14" in capsys.readouterr().out


def test_a_generator_s_trial(own, tmp_path, capsys):
    folder, encoder, _ = own
    sampling = yaml.safe_load((FOLDER / "gpt-b.yaml").read_text())["sampling"]
    path = write_manifest(
        tmp_path / "gpt.yaml", folder, task="generation", gpt=str(folder / "gpt"), count=100,
        sampling={**sampling, "precision": "none"}, expected=[{"name": "gFID", "value": 2.0, "band": 0.1}],
    )  # fmt: skip
    arguments = ["--num", "6", "--no-fid", "--set", encoder, "--results-dir", str(tmp_path / "results")]
    assert cli.main(["reproduce", path, *arguments]) == 0
    said = capsys.readouterr().out
    assert "checked: 6 samples" in said and "6 images instead of the published 100" in said
    assert (tmp_path / "results/gpt-6/gpt-cfg-1.5-6x32px-seed-0/samples.npz").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt-z"], "no manifest 'gpt-z' (closest: gpt-"),
        (["gpt-l"], "(closest: gpt-l-cfg, gpt-l-no-cfg): give a name of `vfmtok reproduce --list`"),
        (["zzz"], "no manifest 'zzz': give a name of `vfmtok reproduce --list`"),
        (["gpt-b-cfg"], f"from {shared_flags.ADM_REFERENCE}"),
        (["gpt-b-cfg", "--ref-batch", "/none.npz"], "--ref-batch: there is no file or folder /none.npz"),
        (["gpt-b-cfg", "--ref-batch", __file__, "--lpips", "x"], "--lpips has no place in gpt-b-cfg"),
        (["tokenizer", "--data", "/none"], "--data: no dataset at /none; `vfmtok prepare` makes one"),
        (["vfmvae-tokenizer", "--num", "1", "--data", "{data}", "--lpips", "/none"], "--lpips: there is no file /none"),
        (["ditdh-xl-80e-no-cfg", "--num", "1", "--stats-file", "/none"], "--latent-stats: there is no file /none"),
        (["ditdh-xl-80e-no-cfg", "--num", "1", "--stats-file", "{empty}"], "empty.npz"),
        (["gpt-b-cfg", "--ref-batch", "{empty}"], "is no npz, or was not downloaded to its end"),
        (["gpt-b-cfg", "--ref-batch", "{foreign}"], "foreign.npz is no reference: it has neither mu and sigma nor"),
        (["gpt-b-cfg", "--ref-batch", "{folder}"], "no image files in "),
        (["gpt-b-cfg", "--ref-batch", "{data}", "--offline"], "looked for --inception, $VFMTOK_INCEPTION and "),
        (["gpt-b-cfg", "--ref-batch", "{data}", "--inception", "/none"], "no Inception weights at /none"),
        (["tokenizer", "--data", "{data}"], "holds 14 images, the published numbers are of 50,000: name the whole"),
        (["tokenizer", "--data", "{data}", "--num", "50000"], "or give --num (at most 14) for a trial that compares"),
        (["tokenizer", "--data", "{data}", "--num", "15", "--no-fid"], "--num 15 is more than the 14 images of --data"),
        (["tokenizer"], "name --data: the same 50,000 ImageNet validation images"),
        (["gpt-b-cfg"], "name --ref-batch: ADM's VIRTUAL_imagenet256_labeled.npz"),
        (["gpt-b-cfg", "--num", "0"], "--num must be 1 to 50000"),
        (["gpt-b-cfg", "--no-fid"], "--no-fid leaves out what was published"),
        (["tokenizer", "--ref-batch", "x.npz"], "--ref-batch has no place in a reconstruction"),
        ([], "name what to reproduce"),
    ],
)
def test_wrong_usage_is_one_line_before_anything_is_fetched(hub, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("VFMTOK_INCEPTION", raising=False)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "foreign.npz", mean=np.zeros(2))
    places = {name: tmp_path / name for name in ("data", "folder")}
    places |= {name: tmp_path / f"{name}.npz" for name in ("empty", "foreign")}
    if "{data}" in arguments:
        tiny_models.write_dataset(places["data"])
    assert cli.main(["reproduce", *(word.format(**places) for word in arguments)]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1
    assert not said.out and not hub.gets


def test_the_list_tells_all(capsys):
    assert cli.main(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == manifest_names()
    for line, manifest in zip(lines, map(find_manifest, manifest_names()), strict=True):
        assert all(f"{number.name} {number.value:g}" in line for number in manifest.expected)
        assert ("; shown only: " in line) == any(not number.binding for number in manifest.expected)


def test_what_decides_is_told_before_measuring(capsys):
    assert cli.main(["reproduce", "gpt-l-no-cfg", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "  must pass  gFID 2.15 ± 0.1 (paper 2.11)\n" in said
    assert "Rc 0.6 ± 0.015: decide nothing\n" in said and "X is shown and decides nothing" in said
    assert said.count("Estimated, not measured here.") == 1 and shared_flags.ADM_REFERENCE in said
    assert cli.main(["reproduce", "ditdh-xl-80e-no-cfg", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "shown only" not in said and "(paper X)" not in said
    assert "assumed    Denoiser and decoder compute in float32 here; the published run had both under bfloat16" in said
    assert "weights    the average (EMA)" in said


def test_every_generation_says_where_its_reference_comes_from():
    for manifest in map(find_manifest, manifest_names()):
        assert (shared_flags.ADM_REFERENCE in manifest.reference) == (manifest.task == "generation")
