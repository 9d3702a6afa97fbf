import io
import json
import os

import numpy as np
import pytest
from image_makers import class_files, encoded, make_parquet, read_tree, vfmtok, write_tree
from PIL import Image

from vfmtok.cli import main
from vfmtok.commands.prepare import prepare
from vfmtok.data.dataset_folder import export, verify
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.errors import DataError


def records(path):
    dataset = RecordDataset(path)
    return [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize("layout", ["vfmtok", "published"])
@pytest.mark.parametrize("val_fraction", [None, 0.3])
def test_folder_to_records_to_folder_is_byte_identical(tmp_path, layout, val_fraction):
    files = class_files() | {"bird/deep/er/ünïcödé 鳥.png": encoded(9, fmt="PNG")}
    prepare([str(write_tree(tmp_path / "in", files))], tmp_path / "out", val_fraction, layout=layout)
    assert (tmp_path / "out/val_lmdb").exists() == (val_fraction is not None)
    verify(tmp_path / "out")
    export(tmp_path / "out", tmp_path / "back")
    assert read_tree(tmp_path / "back") == files
    export(tmp_path / "out", tmp_path / "back")  # again changes nothing
    assert read_tree(tmp_path / "back") == files
    (tmp_path / "back/cat/000.png").write_bytes(b"mine")
    with pytest.raises(DataError, match="other content"):
        export(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back/cat/000.png").read_bytes() == b"mine"


def test_metadata_and_report_say_what_was_done(tmp_path):
    files = {f"{split}/{name}": content for split in ("train", "val") for name, content in class_files().items()}
    prepare([str(write_tree(tmp_path / "in", files | {"notes.txt": b"x"}))], tmp_path / "out")
    train, val = RecordDataset(tmp_path / "out/train_lmdb"), RecordDataset(tmp_path / "out/val_lmdb")
    assert train.classes == val.classes == ["bird", "cat", "dog"]
    assert train.metadata["class_counts"] == {"0": 4, "1": 4, "2": 4} and train.metadata["count"] == len(train) == 12
    assert train.fingerprint != val.fingerprint
    assert train.metadata["source_fingerprint"] == val.metadata["source_fingerprint"]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["splits"] == {"train": {"files": 12, "records": 12}, "val": {"files": 12, "records": 12}}
    assert report["ignored"] == {".txt": 1} and report["skipped"] == []


def test_worker_processes_write_the_same_records_in_the_same_order(tmp_path):
    source = write_tree(tmp_path / "in", class_files(per_class=30))
    prepare([str(source)], tmp_path / "one", workers=1)
    prepare([str(source)], tmp_path / "two", workers=2)
    assert records(tmp_path / "one/train_lmdb") == records(tmp_path / "two/train_lmdb")
    verify(tmp_path / "two", workers=2)


def _png16() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 24 * 18).reshape(18, 24).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def _animated(fmt: str) -> bytes:
    frames = [Image.open(io.BytesIO(encoded(i, (96, 72)))) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, fmt, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def odd_images() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "cmyk.jpg": encoded(0, (96, 72), mode="CMYK"),
        "rotated.jpg": encoded(1, (96, 72), exif=exif),
        "grey.jpg": encoded(2, (96, 72), mode="L"),
        "sixteen.png": _png16(),
        "palette.png": encoded(3, (96, 72), fmt="PNG", mode="P"),
        "bilevel.png": encoded(4, (96, 72), fmt="PNG", mode="1"),
        "transparent.png": encoded(5, (96, 72), fmt="PNG", mode="RGBA"),
        "palette_transparent.gif": encoded(6, (96, 72), fmt="GIF", mode="P", transparency=0),
        "moving.gif": _animated("GIF"),
        "moving.webp": _animated("WEBP"),
        "float.tif": encoded(7, (96, 72), fmt="TIFF", mode="F"),
        "one_pixel.png": encoded(8, (1, 1), "PNG"),
        "narrow.jpg": encoded(9, (300, 1)),
        "日本語 ñ.jpg": encoded(10, (96, 72)),
        "no_extension": encoded(11, (96, 72)),
        "wrong_extension.png": encoded(12, (96, 72)),
    }


def test_odd_but_valid_images_all_come_in_untouched(tmp_path):
    images = {f"c/{name}": content for name, content in odd_images().items()}
    prepare([str(write_tree(tmp_path / "in", images))], tmp_path / "out")
    assert {r.name: r.image for r in records(tmp_path / "out/train_lmdb")} == images


@pytest.mark.parametrize("image_format", [None, "jpeg", "png", "webp"])
def test_resize_and_format_reencode_odd_images_sensibly(tmp_path, image_format):
    images = {f"c/{name}": content for name, content in odd_images().items()}
    source = str(write_tree(tmp_path / "in", images))
    prepare([source], tmp_path / "out", resize=32, image_format=image_format)
    for record in records(tmp_path / "out/train_lmdb"):
        before, after = Image.open(io.BytesIO(images[record.name])), Image.open(io.BytesIO(record.image))
        assert min(after.size) == min(32, *before.size), record.name
        assert abs(after.width / after.height - before.width / before.height) < 0.1 * before.width / before.height
        if image_format:
            assert after.format == image_format.upper()
        elif min(before.size) <= 32:
            assert record.image == images[record.name]  # nothing is enlarged
        assert after.getexif().get(0x0112) == before.getexif().get(0x0112)  # orientation stays a tag
        if before.mode not in ("I;16", "F", "RGBA", "P", "CMYK"):
            small = before.convert("RGB").resize(after.size, Image.Resampling.LANCZOS)
            error = np.abs(np.asarray(after.convert("RGB"), float) - np.asarray(small, float)).mean()
            assert error < 5, (record.name, error)
    export(tmp_path / "out", tmp_path / "back")
    if image_format == "webp":
        assert all(name.endswith(".webp") for name in read_tree(tmp_path / "back"))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    prepare([str(write_tree(tmp_path / "in", {"c/x.png": _png16()}))], tmp_path / "out", image_format="jpeg")
    pixels = np.asarray(Image.open(io.BytesIO(records(tmp_path / "out/train_lmdb")[0].image)), float)
    assert np.abs(pixels - np.linspace(0, 255, 24 * 18).reshape(18, 24)).max() < 4


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, capsys):
    files = {
        f"{split}/{name}": content for split in ("train", "val", "test") for name, content in class_files().items()
    }
    source = write_tree(tmp_path / "in", files | {"notes.txt": b"x"})
    for arguments in ([source, tmp_path / "out"], [source]):
        assert main(["prepare", "--dry-run", *map(str, arguments)]) == 0
        printed = capsys.readouterr().out
        for words in ("12 test, 12 train, 12 val", "(12 train, 12 val) of 3 classes", "0 bird, 1 cat, 2 dog", "1 .txt"):
            assert words in printed
        assert "left out 12 images of the test split" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    assert main(["prepare", "--dry-run", str(source), str(tmp_path / "in/notes.txt")]) == 2
    assert main(["prepare", "--dry-run", "--workers", "2", str(source)]) == 2


def test_a_finished_folder_is_complete_and_stays_as_it_is(tmp_path):
    source = write_tree(tmp_path / "in", class_files())
    assert vfmtok("prepare", source, tmp_path / "out").returncode == 0
    before = (tmp_path / "out/train_lmdb/data.mdb").read_bytes()
    again = vfmtok("prepare", source, tmp_path / "out")
    assert again.returncode == 0 and "is complete" in again.stdout
    assert (tmp_path / "out/train_lmdb/data.mdb").read_bytes() == before
    write_tree(source, {"cat/new.png": encoded(1, fmt="PNG")})
    changed = vfmtok("prepare", source, tmp_path / "out")
    assert changed.returncode == 2 and "the sources have changed" in changed.stderr
    other = vfmtok("prepare", source, tmp_path / "out", "--resize", 8)
    assert other.returncode == 2 and "other options" in other.stderr
    assert (tmp_path / "out/train_lmdb/data.mdb").read_bytes() == before


def test_parquet_rows_without_a_path_get_the_formats_extension(tmp_path):
    rows = [(None, encoded(0), 0), (None, encoded(1, fmt="PNG"), 1)]
    source = make_parquet(tmp_path / "x.parquet", rows, ["a", "b"], with_path=False)
    prepare([str(source)], tmp_path / "out")
    assert [r.name for r in records(tmp_path / "out/train_lmdb")] == ["a/x-00000000.jpg", "b/x-00000001.png"]


def test_foreign_records_are_exported_by_number(tmp_path):
    write_records(tmp_path / "x", [Record(encoded(0), 4, ""), Record(encoded(1, fmt="PNG"), 4, "")], "published")
    verify(tmp_path / "x")
    export(tmp_path / "x", tmp_path / "out")
    assert read_tree(tmp_path / "out") == {"4/00000000.jpg": encoded(0), "4/00000001.png": encoded(1, fmt="PNG")}


@pytest.mark.parametrize("name", ["../evil.jpg", "/tmp/evil.jpg", "a/../../evil.jpg"])
def test_export_stays_inside_its_folder(tmp_path, name):
    write_records(tmp_path / "x", [Record(encoded(0), 0, name)])
    with pytest.raises(DataError, match="leads out"):
        export(tmp_path / "x", tmp_path / "out")
    assert not (tmp_path / "evil.jpg").exists()


def test_verify_finds_damage_that_only_the_fingerprint_or_decoding_shows(tmp_path):
    import lmdb

    from vfmtok.data.records import encode_record

    source = write_tree(tmp_path / "in", class_files())
    for number, damage in enumerate(
        [encode_record(Record(b"no image", 0, "x")), encode_record(Record(encoded(99), 1, "x"))]
    ):
        out = tmp_path / f"out{number}"
        prepare([str(source)], out)
        with lmdb.open(str(out / "train_lmdb")) as opened, opened.begin(write=True) as transaction:
            transaction.put(b"3", damage)
        with pytest.raises(DataError, match=["record 3: not an image", "fingerprint"][number]):
            verify(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "out"], "no such source"),
        (["out"], "one or more sources"),
        (["in", "out", "--val-fraction", "1.5"], "between 0 and 1"),
        (["in", "out", "--resize", "0"], "at least 1"),
        (["in", "in/out"], "inside the source"),
        (["--export", "in"], "takes a DATASET"),
        (["--export", "in", "out"], "no dataset"),
        (["--verify", "nothing"], "no dataset"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(tmp_path, arguments, message):
    write_tree(tmp_path / "in", class_files(per_class=1))
    result = vfmtok("prepare", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_exported_names_tell_the_format_that_prepare_wrote(tmp_path):
    images = {
        "c/big.gif": encoded(0, (96, 72), "GIF", mode="P"),
        "c/small.gif": encoded(1, (20, 18), "GIF", mode="P"),
        "c/big.png": encoded(2, (96, 72), "PNG"),
        "c/big.JPEG": encoded(3, (96, 72)),
        "c/big.jpe": encoded(4, (96, 72)),
        "c/big.tif": encoded(5, (96, 72), "TIFF"),
        "c/really_a_jpeg.png": encoded(6, (20, 18)),
        "c/really_a_png.jpg": encoded(7, (20, 18), "PNG"),
    }
    source = str(write_tree(tmp_path / "in", images))
    added = {
        "resize": {"c/big.gif": ".png", "c/big.tif": ".png"},
        "jpeg": {name: ".jpg" for name in images if name not in ("c/big.JPEG", "c/big.jpe", "c/really_a_png.jpg")},
    }
    for options, resize, image_format in (("resize", 32, None), ("jpeg", None, "jpeg")):
        prepare([source], tmp_path / options, resize=resize, image_format=image_format)
        for _ in range(2):
            export(tmp_path / options, tmp_path / f"{options}-back")
        stored = {r.name: r.image for r in records(tmp_path / options / "train_lmdb")}
        expected = {name + added[options].get(name, ""): content for name, content in stored.items()}
        assert read_tree(tmp_path / f"{options}-back") == expected
    assert {name for name, content in images.items() if read_tree(tmp_path / "resize-back").get(name) == content} == {
        name for name in images if "big" not in name
    }


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--export", "out", "back", "--resize", "8"], "--resize"),
        (["--export", "out", "back", "--verify"], "--verify"),
        (["--export", "out", "back", "--workers", "2"], "--workers"),
        (["--export", "out", "back", "--layout", "vfmtok"], "--layout"),
        (["--verify", "out", "--val-fraction", "0.5"], "--val-fraction"),
        (["--verify", "out", "--format", "png"], "--format"),
    ],
)
def test_options_that_would_be_ignored_are_refused(tmp_path, monkeypatch, capsys, arguments, option):
    monkeypatch.chdir(tmp_path)
    prepare([str(write_tree(tmp_path / "in", class_files(per_class=1)))], "out")
    assert main(["prepare", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"has no use for {option}" in error and not (tmp_path / "back").exists()
    assert main(["prepare", "--verify", "in", "out", "--layout", "vfmtok"]) == 0  # all of it is used
    assert main(["prepare", "--verify", "out", "--workers", "1"]) == 0


def test_options_may_stand_between_the_paths(tmp_path):
    source = write_tree(tmp_path / "in", class_files(per_class=20))
    for number, arguments in enumerate(
        [
            [source, "--val-fraction", "0.3", "OUT"],
            ["--val-fraction=0.3", source, "OUT"],
            [source, "OUT", "--val-fraction", "0.3"],
        ]
    ):
        out = tmp_path / f"out{number}"
        assert main(["prepare", *(str(out if word == "OUT" else word) for word in arguments)]) == 0
        assert records(out / "val_lmdb") == records(tmp_path / "out0/val_lmdb")
    second = write_tree(tmp_path / "more", class_files())
    assert main(["prepare", str(source), "--workers", "1", str(second), "--verify", str(tmp_path / "both")]) == 0
    assert len(records(tmp_path / "both/train_lmdb")) == 72


def test_report_and_help_say_what_the_fingerprint_covers(tmp_path, capsys):
    source = write_tree(tmp_path / "in", class_files())
    prepare([str(source)], tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["source_fingerprint_covers"].startswith("names, labels, splits and sizes")
    for file in source.rglob("*.*"):  # a copy on another disk, say
        os.utime(file, (1, 1))
    prepare([str(source)], tmp_path / "out")
    assert "by names and sizes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    assert "by names and sizes" in capsys.readouterr().out
