import numpy as np
import pytest
from image_makers import class_files, encoded, vfmtok, write_tree
from PIL import Image

from vfmtok.commands.prepare import prepare
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.data.stats import report_lines, summarize
from vfmtok.pictures import style
from vfmtok.pictures.contact_sheet import CELL, Section, draw_sheet


def test_the_numbers_are_those_of_the_images(tmp_path):
    sizes = [(10, 20), (30, 40), (50, 60), (70, 9)]
    good = [Record(encoded(i, size, "PNG" if i else "JPEG"), i % 2, f"{i}") for i, size in enumerate(sizes)]
    broken = [Record(encoded(5, (200, 200))[:-500], 1, "cut.jpg"), Record(b"", 1, "empty.jpg")]
    write_records(tmp_path, [*good, *broken], classes=["even", "odd", "none"])
    summary = summarize(RecordDataset(tmp_path))
    assert sorted(summary.widths.elements()) == [10, 30, 50, 70] and set(summary.heights) == {20, 40, 60, 9}
    assert summary.formats == {"PNG": 3, "JPEG": 1} and summary.labels == {0: 2, 1: 2}
    assert [("cut.jpg" in text, "empty.jpg" in text) for text in summary.corrupt] == [(True, False), (False, True)]
    text = "\n".join(report_lines("set", RecordDataset(tmp_path), summary, decoded=True))
    assert "6 records, 3 classes" in text
    assert "width      min 10, median 40, max 70 px" in text
    assert "corrupt    2 records are undecodable" in text and "1 classes are empty" in text
    assert len(summarize(RecordDataset(tmp_path), decode=False).corrupt) == 1  # the cut one has its header


def test_bars_are_proportional_and_many_classes_are_summed_up(tmp_path):
    write_records(tmp_path / "few", [Record(encoded(0), int(i > 2), f"{i}") for i in range(13)], classes=["a", "b"])
    dataset = RecordDataset(tmp_path / "few")
    bars = report_lines("few", dataset, summarize(dataset), decoded=True)[-2:]
    assert [line.count("█") + line.count("#") for line in bars] == [12, 40] and bars[1].endswith(" 10")
    write_records(tmp_path / "many", [Record(encoded(0), min(i, 49), f"{i}") for i in range(60)])
    dataset = RecordDataset(tmp_path / "many")
    text = "\n".join(report_lines("many", dataset, summarize(dataset), decoded=True))
    assert "most       label 49 11" in text and "█" not in text


def test_the_command_prints_both_splits_and_draws_their_images(tmp_path):
    files = {f"{split}/{name}": content for split in ("train", "val") for name, content in class_files().items()}
    prepare([str(write_tree(tmp_path / "in", files))], tmp_path / "out")
    result = vfmtok("stats", tmp_path / "out", "--out", tmp_path / "sheet.png")
    assert result.returncode == 0, result.stderr
    assert "train: 12 records, 3 classes" in result.stdout and "val: 12 records" in result.stdout
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape[0] > 6 * CELL and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    assert vfmtok("stats", tmp_path / "out/val_lmdb").returncode == 0
    assert (tmp_path / "out/val_lmdb/contact_sheet.png").exists()
    for arguments in (
        ["absent"],
        [tmp_path / "out", "--out", tmp_path / "no/such.png"],
        [tmp_path / "out", "--out", "x.txt"],
    ):
        result = vfmtok("stats", *arguments)
        assert result.returncode == 2 and "Traceback" not in result.stderr and "vfmtok stats: error:" in result.stderr


def test_every_class_of_a_small_set_has_its_own_colour_in_its_row():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    rows = [(f"class {i}", 5, [Image.new("RGB", (50, 50), colour)] * 5) for i, colour in enumerate(colours)]
    pixels = np.asarray(draw_sheet([Section("three", rows)]))
    found = [np.argwhere((pixels == colour).all(-1)) for colour in colours]
    assert [len(points) for points in found] == [5 * CELL * CELL] * 3
    tops = [points[:, 0].min() for points in found]
    assert tops == sorted(tops) and len({points[:, 1].min() for points in found}) == 1
    many = [(f"klässe {i}", 1, [Image.new("LA", (3, 900))]) for i in range(200)]
    assert draw_sheet([Section("many", many)]).width < 1200


def test_names_of_other_alphabets_are_drawn_with_their_letters():
    if all(style._font(name, 12) is None for name in style.FONTS):
        pytest.skip("no TrueType font of the list is installed")
    sheets = [draw_sheet([Section(name, [(name, 1, [])])]).tobytes() for name in ("ΓΔ", "ΛΞ", "éü", "cats")]
    boxes = [draw_sheet([Section(name, [(name, 1, [])])]).tobytes() for name in ("\uffff\uffff", "\ufffe\ufffe")]
    assert len({*sheets, boxes[0]}) == 5 and boxes[0] == boxes[1]


def test_plain_names_look_the_same_on_every_machine():
    assert style._font_for("tench, Tinca tinca", 15) is style._font(None, 15)
