"""Zstandard's tars and the Arrow folders of `datasets`: the same records as from the formats that others use."""

import io
import json
import sys
import tarfile

import pytest
from image_makers import class_files, contents, encoded, make_parquet, write_tree

from vfmtok.errors import DataError
from vfmtok.sources.listing import list_sources
from vfmtok.sources.scratch import Scratch

pyarrow = pytest.importorskip("pyarrow")


def packed(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


@pytest.mark.parametrize("name", ["a.tar.zst", "a.TZST", "a"])
def test_zstandard_in_several_frames(tmp_path, name):
    zstandard = pytest.importorskip("zstandard")
    content = packed(class_files())
    whole = zstandard.compress(content[:3000]) + zstandard.compress(content[3000:])  # as pzstd writes
    (tmp_path / name).write_bytes(whole)
    with Scratch(tmp_path / "scratch") as scratch:
        expected = contents(list_sources([str(write_tree(tmp_path / "d", class_files()))], scratch))
        assert contents(list_sources([str(tmp_path / name)], scratch)) == expected
        for length in (len(whole) // 2, len(whole) - 30):
            (tmp_path / "cut.tar.zst").write_bytes(whole[:length])
            with pytest.raises(DataError, match="cut"):
                list_sources([str(tmp_path / "cut.tar.zst")], scratch)
        (tmp_path / "bad.tar.zst").write_bytes(whole[:40] + b"\0" * 100 + whole[140:])
        with pytest.raises(DataError):
            list_sources([str(tmp_path / "bad.tar.zst")], scratch)


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "a.tar.zst").write_bytes(zstandard.compress(packed(class_files())))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"pip install 'vfmtok\[zstd\]'"):
        list_sources([str(tmp_path / "a.tar.zst")], Scratch(tmp_path))


def save_to_disk(folder, rows, names, batch=3, opened=pyarrow.ipc.new_stream):
    """Two files of a split, with what `datasets` writes beside them."""
    folder.mkdir(parents=True)
    feature = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    schema = pyarrow.schema(
        {"image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}), "label": pyarrow.int64()},
        {"huggingface": json.dumps({"info": {"features": feature}})},
    )
    parts = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    for number, part in enumerate(parts):
        images = [{"bytes": content, "path": name} for name, content, _ in part]
        table = pyarrow.table({"image": images, "label": [label for *_, label in part]}, schema)
        with opened(str(folder / f"data-0000{number}-of-00002.arrow"), schema) as writer:
            writer.write_table(table, max_chunksize=batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00002.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": feature}))
    return folder


@pytest.mark.parametrize("opened", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_an_arrow_folder_is_the_parquet_files_that_it_was_saved_from(tmp_path, opened):
    rows = [(f"{number}.jpg", encoded(number), number % 2) for number in range(14)]
    test = [(f"{number}.jpg", encoded(number), 1) for number in range(20, 23)]
    folder = tmp_path / "saved"
    for split, own in (("train", rows), ("validation", test), ("test", test)):
        save_to_disk(folder / split, own, ["zebra", "ant"], opened=opened)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    (tmp_path / "p").mkdir()
    for split, own in (("train", rows), ("validation", test), ("test", test)):
        make_parquet(tmp_path / f"p/{split}-00000-of-00001.parquet", own, ["zebra", "ant"])
    found = list_sources([str(folder)], Scratch(tmp_path))
    expected = list_sources([str(tmp_path / "p")], Scratch(tmp_path))
    assert contents(found) == contents(expected)
    assert (found.classes, found.left_out) == (["zebra", "ant"], 3)
    one = list_sources([str(folder / "train/data-00001-of-00002.arrow")], Scratch(tmp_path))
    assert [(label, content) for _, label, content in contents(one)["train"]] == [(r[2], r[1]) for r in rows[7:]]


def test_damaged_arrow_files_are_one_line(tmp_path):
    folder = save_to_disk(tmp_path / "s", [(f"{n}.jpg", encoded(n), 0) for n in range(6)], ["ant"])
    file = folder / "data-00000-of-00002.arrow"
    for content in (b"", b"no arrow at all", file.read_bytes()[:700]):
        file.write_bytes(content)
        with pytest.raises(DataError, match="data-00000"):
            list_sources([str(folder)], Scratch(tmp_path))
