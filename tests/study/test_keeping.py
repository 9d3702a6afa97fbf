"""What is kept of a study: from its logs and results alone, every measured number of its table can be read again."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean, stdev

import pytest

from vfmtok.study.config import load_study

ROOT = Path(__file__).parents[2]
KEPT = {"configs/studies/small/league.yaml": "docs/league"}


def number(file: Path, key: str) -> float | None:
    """The last of a training's log, or the first result whose name fits."""
    if file.suffix == ".jsonl":
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        return next((entry[key] for entry in reversed(entries) if key in entry), None)
    numbers = json.loads(file.read_text())["numbers"]
    return next((entry["value"] for name, entry in numbers.items() if fnmatchcase(name, key)), None)


def check_kept(study, folder: Path) -> int:
    """Every measured number and every minute of the kept table is in the kept files. Returns how many there are."""
    table, index = (json.loads((folder / name).read_text()) for name in ("table.json", "logs/steps.json"))
    assert {path.name for path in (folder / "logs").iterdir()} == {*index, "steps.json"}
    files = {(said["kind"], row, seed): file for file, said in index.items() for row, seed in said["serves"]}
    checked = 0
    for row, column in [(row.name, column) for row in study.rows for column in study.columns]:
        minutes = column.of == "row" and column.key.endswith(" minutes")
        if column.of == "row" and not minutes:
            continue  # bits and sizes, which the recipe says
        found = {}
        for seed in study.seeds:
            file = files.get((column.key.split()[0] if minutes else column.of, row, seed))
            if file is not None:
                value = index[file]["seconds"] / 60 if minutes else number(folder / "logs" / file, column.key)
                found |= {} if value is None else {str(seed): value}
        cell = table["rows"][row]["numbers"][column.name]
        assert cell["by seed"] == found, (row, column.name)
        if found:
            assert cell["mean"] == pytest.approx(fmean(found.values()), rel=1e-12), (row, column.name)
        if len(found) > 1:
            assert cell["spread"] == pytest.approx(stdev(found.values()), rel=1e-9, abs=1e-12), (row, column.name)
        checked += len(found)
    return checked


@pytest.mark.parametrize("file", KEPT)
def test_a_kept_table_is_that_of_its_logs(file):
    study = load_study(ROOT / file)
    assert check_kept(study, ROOT / KEPT[file]) > 20 * len(study.rows)


def test_a_study_keeps_what_its_table_is_made_of(study, vfmtok_study, tmp_path):
    columns = [
        {"name": "PSNR", "of": "reconstruction"},
        {"name": "pixels", "of": "tokenizer", "number": "loss/pixel", "better": "lower"},
        {"name": "min", "of": "row", "number": "tokenizer minutes", "better": "neither"},
    ]
    rows = [{"name": "+ base"}, {"name": "plus base", "tokenizer_set": ["tokenizer.quantizer.codebook_size=32"]}]
    file, kept = study(generator=None, generation=None, seeds=[0], columns=columns, rows=rows), tmp_path / "kept"
    code, said, errors = vfmtok_study(file, "--row", "1", "--keep", str(kept))
    assert code == 0, errors
    assert f"kept: 2 logs and results in {kept}/logs" in said
    assert check_kept(load_study(file), kept) == 3
    (kept / "README.md").write_text("What it teaches\n")
    assert vfmtok_study(file, "--keep", str(kept))[0] == 0
    assert check_kept(load_study(file), kept) == 6  # the rows' names are alike without their signs, the files' are not
    assert {path.name for path in kept.iterdir()} == {
        "README.md", "logs", "reconstructions.png", "study.html", "table.json", "table.md"
    }  # fmt: skip


def test_where_nothing_can_be_kept(study, vfmtok_study, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, errors = vfmtok_study(study(), "--page-only", "--keep", str(tmp_path / "file"))
    assert code == 2 and errors.count("\n") == 1 and f"cannot keep the study in {tmp_path}/file" in errors
