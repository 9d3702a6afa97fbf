"""`vfmtok study`, whole: the steps that rows share, the page that it ends in, and what ends it early."""

import html
import json
import re
from collections import Counter

import pytest
import yaml
from PIL import Image


def steps(folder) -> Counter:
    return Counter(re.sub(r"-[0-9a-f]+$", "", path.name) for path in (folder / "steps").iterdir())


@pytest.mark.slow
def test_a_study_ends_in_its_page_and_does_nothing_twice(study, vfmtok_study, tmp_path):
    code, said, errors = vfmtok_study(study(seeds=[0, 1]))
    assert code == 0, errors
    # One tokenizer serves both rows, for each of two seeds.
    shared = dict.fromkeys(("tokenizer", "reconstruction", "codes", "held-out-codes"), 2)
    assert steps(tmp_path / "out") == {**shared, "generator": 4, "generation": 4, "images": 4}
    assert "20 of 20: " in said and "to do: 20 steps, about" in said
    table = json.loads((tmp_path / "out/table.json").read_text())
    base, wider = (table["rows"][name]["numbers"] for name in ("base", "wider"))
    assert {**base["PSNR"], "beside": ""} == {**wider["PSNR"], "beside": ""} and wider["PSNR"]["beside"] == "noise"
    assert set(wider["nats"]["by seed"]) == {"0", "1"} and len(set(wider["nats"]["by seed"].values())) == 2
    assert base["rFID"]["published"] == 0.89 and base["rFID"]["mean"] is None
    page = (tmp_path / "out/study.html").read_text()
    assert "Not there yet" not in page and "http" not in re.sub(r"base64,[^']+", "", page)
    assert page.count("data:image/png;base64,") == 4
    for word in ("base", "wider", "0.89", "32 px", "seed noise", "generator.dim=48"):
        assert word in page, word
    # Both rows have the same reconstructions, and samples of their own: two columns each, the original's among them.
    widths = [Image.open(tmp_path / f"out/{name}.png").width for name in ("reconstructions", "samples")]
    assert widths[0] == widths[1] and "reconstructions.png, samples.png and table.md" in said
    commands = len(vfmtok_study.commands)
    code, said, _ = vfmtok_study(study(seeds=[0, 1]))
    assert code == 0 and "20 of 20 steps are done" in said and len(vfmtok_study.commands) == commands
    assert json.loads((tmp_path / "out/table.json").read_text()) == table


def test_the_table_keeps_what_was_asked(study, vfmtok_study, tmp_path):
    """Studies of one file with other settings differ in table.json and on the page, before anything is done."""
    flags = ["--set", "title=Mine", "--generator-set", "optimizer.lr=2e-3", "--set", "seeds=[3]"]
    file = study()
    of_all = yaml.safe_load(file.read_text())["tokenizer_set"]
    assert vfmtok_study(file, "--page-only", "--row", "1", *flags)[0] == 0
    table, page = json.loads((tmp_path / "out/table.json").read_text()), (tmp_path / "out/study.html").read_text()
    asked = "--set title=Mine --set 'seeds=[3]' --generator-set optimizer.lr=2e-3"
    assert table["command"] == f"vfmtok study {tmp_path}/tiny.yaml {asked}"
    assert table["set"] == ["title=Mine", "seeds=[3]"] and table["seeds"] == [3] and table["title"] == "Mine"
    assert table["tokenizer_set"] == of_all and table["generator_set"] == [*of_all, "optimizer.lr=2e-3"]
    for text in (table["command"], *table["generator_set"]):
        assert html.escape(text) in page, text


STAGES = ["vq_train.py", "vqgan_test.py", "codes", "train_c2i.py", "test_net.py"]


@pytest.mark.slow
def test_a_study_that_is_stopped_in_every_stage_ends_in_the_same_table(study, vfmtok_study, tmp_path):
    file = study()
    assert vfmtok_study(file, "--row", "base", out="whole")[0] == 0
    assert vfmtok_study(file, "--dry-run")[0] == 0  # trainings were measured
    for stage in STAGES:
        vfmtok_study.interrupted_at[:] = [stage]
        assert vfmtok_study(file, "--row", "1")[0] == 130 and not vfmtok_study.interrupted_at
        assert not list((tmp_path / "out").rglob("claim.json"))
    assert vfmtok_study(file, "--row", "base")[0] == 0
    tables = [json.loads((tmp_path / out / "table.json").read_text()) for out in ("whole", "out")]
    assert tables[0]["rows"] == tables[1]["rows"] and tables[1]["rows"]["base"]["numbers"]["nats"]["mean"]
    assert tables[1]["rows"]["wider"]["numbers"]["nats"]["mean"] is None  # which was not asked for
    assert "steps are not done yet" in (tmp_path / "out/study.html").read_text()


def test_a_full_disk_is_one_line_and_the_same_command_continues(study, vfmtok_study, tmp_path):
    """Everything that is written to /dev/full meets a full disk."""
    file = study(generator=None, generation=None)
    assert vfmtok_study(file, "--dry-run")[0] == 0
    assert not (tmp_path / "out/steps").exists()
    assert vfmtok_study(file, "--page-only")[0] == 0  # of nothing yet
    for kind in ("tokenizer", "reconstruction"):
        (number,) = {line.split()[0] for line in dry_run(vfmtok_study, file) if line.strip().startswith(kind)}
        log = tmp_path / "out/steps" / number / "log.txt"
        log.parent.mkdir(parents=True)
        log.symlink_to("/dev/full")
        code, _, errors = vfmtok_study(file)
        assert (code, errors) == (2, f"vfmtok study: error: tiny: cannot write {log}: No space left on device\n")
        log.unlink()
    code, _, errors = vfmtok_study(file)
    assert code == 0, errors
    assert steps(tmp_path / "out") == {
        "tokenizer": 1,
        "reconstruction": 1,
        "images": 1,
    }  # rows that are the same so far


@pytest.mark.slow
def test_given_weights_are_measured_and_not_trained(study, vfmtok_study, tmp_path):
    """They are the same for every seed, so they tell nothing about noise; a row may change their configuration."""
    assert vfmtok_study(study(generator=None, generation=None), out="trained")[0] == 0
    (run,) = (tmp_path / "trained/steps").glob("tokenizer-*/out")
    rows = [{"name": "given", "weights": str(run)}, {"name": "trained"}]
    code, _, errors = vfmtok_study(study(rows=rows, seeds=[0, 1], generator=None, generation=None))
    assert code == 0, errors
    assert steps(tmp_path / "out") == {"tokenizer": 2, "reconstruction": 3, "images": 3}
    found = json.loads((tmp_path / "out/table.json").read_text())["rows"]
    given, trained = (found[name]["numbers"]["PSNR"]["by seed"] for name in ("given", "trained"))
    assert list(given) == ["0"] and set(trained) == {"0", "1"} and given["0"] == trained["0"]


def dry_run(vfmtok_study, file) -> list[str]:
    return [line for line in vfmtok_study(file, "--dry-run")[1].splitlines() if line.startswith("  ")]


@pytest.mark.slow
def test_two_processes_in_one_folder_do_every_step_once(study, start, tmp_path):
    file = study(generator=None, generation=None, seeds=[0, 1])
    processes = [start(file), start(file)]
    for process in processes:
        assert process.wait(600) == 0, process.log.read_text()
    logs = list((tmp_path / "out/steps").glob("*/log.txt"))
    assert len(logs) == 4 and all(log.read_text().count("$ ") == 1 for log in logs)
    done = [process.log.read_text().count("  done in") for process in processes]
    assert sum(done) == 6
    assert not list((tmp_path / "out").rglob("claim*"))
