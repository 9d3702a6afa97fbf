"""`vfmtok study`, whole: the steps that it shares, the page that it ends in, and what ends it early."""

import json
import re


def test_a_study_ends_in_its_page_and_does_nothing_twice(study, vfmtok_study, tmp_path):
    code, said, errors = vfmtok_study(study(seeds=[0, 1]))
    assert code == 0, errors
    kinds = [re.sub(r"-[0-9a-f]+$", "", path.name) for path in (tmp_path / "out/steps").iterdir()]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    # Two tokenizers serve three rows, for each of two seeds.
    shared = dict.fromkeys(("tokenizer", "reconstruction", "codes", "held-out-codes"), 4)
    assert counts == {**shared, "generator": 6, "generation": 6, "images": 6}
    assert "34 of 34: " in said and "to do: 34 steps, about" in said
    table = json.loads((tmp_path / "out/table.json").read_text())
    rows = table["rows"]
    assert rows["one level"]["numbers"]["PSNR"] | {"beside": ""} == rows["wider"]["numbers"]["PSNR"] | {"beside": ""}
    assert set(rows["wider"]["numbers"]["nats"]["by seed"]) == {"0", "1"}
    assert rows["all levels"]["numbers"]["rFID"] | {"protocol": ""} == {
        "mean": None, "spread": None, "by seed": {}, "published": 0.89, "beside": "", "protocol": "",
    }  # fmt: skip
    page = (tmp_path / "out/study.html").read_text()
    assert "Not there yet" not in page and "http" not in re.sub(r"base64,[^']+", "", page)
    assert page.count("data:image/png;base64,") == 4
    for word in ("all levels", "one level", "wider", "0.89", "32 px", "seed noise"):
        assert word in page, word
    commands = len(vfmtok_study.commands)
    code, said, _ = vfmtok_study(study(seeds=[0, 1]))
    assert code == 0 and "34 of 34 steps are done" in said and len(vfmtok_study.commands) == commands
    assert json.loads((tmp_path / "out/table.json").read_text()) == table
