"""The page of a quickstart: what is missing is said, what is damaged is one line, and text stays text.

tests/test_quickstart.py looks at a whole page.
"""

import json

import pytest
from test_latent_cache import write

from vfmtok import cli
from vfmtok.pictures.curves import PANELS, read_log
from vfmtok.pictures.report import build_page


def test_stages_that_did_not_run_are_named(tmp_path):
    page = build_page(tmp_path)
    assert page.count("Not there yet") == page.count("<section>") == 10
    assert "reconstruction/results.json" in page and "timings.tsv" in page


def test_numbers_stand_beside_their_protocol_and_text_is_escaped(tmp_path):
    place = tmp_path / "agreement"
    place.mkdir()
    number = {"value": 0.51234, "protocol": "of <b>540</b> images", "digits": 3}
    results = {"numbers": {"agreement, CFG 2": number}, "warnings": ["few & far"], "notes": []}
    (place / "results.json").write_text(json.dumps(results))
    page = build_page(tmp_path)
    assert page.count("<td>0.512</td><td>of &lt;b&gt;540&lt;/b&gt; images</td>") == 1
    assert "few &amp; far" in page and "<b>540" not in page


def test_what_was_not_finite_does_not_keep_the_page_away(tmp_path):
    for place in ("reconstruction", "generator"):
        (tmp_path / place).mkdir()
    number = {"value": None, "protocol": "dB", "digits": 2}
    results = {"numbers": {"PSNR": number}, "warnings": ["PSNR is inf"], "notes": []}
    (tmp_path / "reconstruction/results.json").write_text(json.dumps(results))
    for name in ("reconstructions", "sampling_points"):
        (tmp_path / f"reconstruction/{name}.png").write_bytes(b"")
    steps = [{"step": step, "loss/token": 5.0 - step, "grad_norm/model": value} for step, value in enumerate((1, None))]
    (tmp_path / "generator/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    log = read_log(tmp_path / "generator")
    assert log == {"loss/token": ([0, 1], [5.0, 4.0]), "grad_norm/model": ([0], [1.0])}
    page = build_page(tmp_path)
    assert "<td>none</td><td>dB</td>" in page and "<b>none</b>" in page and "curves of generator" in page


def test_a_curve_is_of_the_run_s_own_loss():
    """A loss of velocities is no nats per token, though both are called the loss; one that is off has no curve."""
    of_ids, of_latents = {"loss/token": ([1], [5.0])}, {"loss/mse": ([1], [2.0]), "loss/token": ([1], [0.1])}
    titles = []
    for log in (of_ids, of_latents):
        log |= {"validation/loss": ([1], [3.0]), "loss/pixel": ([1, 2], [0.0, 0.0])}
        titles.append([panel.title for panel in PANELS if panel.of(log)])
    assert titles == [
        ["token loss (training)", "held-out token loss"],
        ["velocity loss (training)", "held-out loss of latents"],
    ]


def test_latents_have_statistics_instead_of_a_codebook(tmp_path):
    write(tmp_path / "codes/train")
    (tmp_path / "codes/train/contact_sheet.png").write_bytes(b"")
    page = build_page(tmp_path)
    assert "latents of 3 x 2 x 4" in page and "standard deviation" in page and "perplexity" not in page


def test_runs_of_a_stage_are_added_up(tmp_path):
    (tmp_path / "timings.tsv").write_text("tokenizer\t90\tpython a\ncodes\t30\tvfmtok b\ntokenizer\t6\tpython a\n")
    page = build_page(tmp_path)
    assert "<td>96&nbsp;s</td><td><code>python a</code>" in page and "2.1 min" in page


def test_what_minutes_cost_is_said(tmp_path):
    (tmp_path / "timings.tsv").write_text("data\t6\tvfmtok prepare\n")
    trainings = [{"kind": "tokenizer", "steps": 1800, "set": []}, {"kind": "generator", "steps": 1500, "set": []}]
    found = {"seconds": 290.0, "minutes": 5, "share": 0.4, "trainings": trainings}
    (tmp_path / "pace-5.json").write_text(json.dumps(found))
    page = build_page(tmp_path)
    assert "5 minutes were expected" in page
    assert "40% of their recipes&#x27; steps (in full: 1,800 of the tokenizer and 1,500 of the generator)" in page
    (tmp_path / "pace-5.json").write_text(json.dumps({**found, "share": 1.0}))
    assert "recipes&#x27; steps" not in build_page(tmp_path)


def test_a_damaged_file_is_one_line(tmp_path, capsys):
    (tmp_path / "agreement").mkdir()
    (tmp_path / "agreement/results.json").write_text("{")
    assert cli.main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "results.json is damaged" in error
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("folder", ["missing", "a_file"])
def test_no_folder(tmp_path, capsys, folder):
    (tmp_path / "a_file").touch()
    assert cli.main(["report", str(tmp_path / folder)]) == 2
    assert "run scripts/quickstart.sh first" in capsys.readouterr().err
