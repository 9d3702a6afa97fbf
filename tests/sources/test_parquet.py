"""Sources in parquet: what is particular to them."""

import time

import numpy as np
import pytest
from image_makers import contents, encoded, make_parquet

from vfmtok.errors import DataError
from vfmtok.sources import files as source_files
from vfmtok.sources.listing import list_sources
from vfmtok.sources.scratch import Scratch


def test_parquet_with_unsorted_names_keeps_its_labels(tmp_path):
    rows = [(None, encoded(i), i % 2) for i in range(12)]
    source = make_parquet(tmp_path / "x.parquet", rows, ["zebra, horse", "ant"], with_path=False)
    listing = list_sources([str(source)], Scratch(tmp_path))
    assert listing.classes == ["zebra, horse", "ant"]
    assert [(label, content) for _, label, content in contents(listing)["train"]] == [(r[2], r[1]) for r in rows]
    assert listing.splits["train"][1].name == "ant/x-00000001"
    text = make_parquet(
        tmp_path / "y.parquet", [("a.jpg", encoded(0), "b"), ("c.jpg", encoded(1), "a")], None, "string"
    )
    assert [e.label for e in list_sources([str(text)], Scratch(tmp_path)).splits["train"]] == [1, 0]


@pytest.mark.parametrize("value", [0.5, [1, 2], True])
def test_parquet_labels_of_other_types_are_refused(tmp_path, value):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [{"bytes": encoded(1), "path": "a.jpg"}], "label": [value]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="whole numbers or text"):
        list_sources([str(tmp_path / "a.parquet")], Scratch(tmp_path))


def test_a_parquet_row_without_an_image_is_corrupt(tmp_path):
    source = make_parquet(tmp_path / "x.parquet", [("a.png", encoded(0), 0), ("b.png", None, 0)], ["a"])
    there, absent = list_sources([str(source)], Scratch(tmp_path)).splits["train"]
    assert source_files.read(there.place) == encoded(0)
    with pytest.raises(source_files.CorruptFile, match="holds no bytes"):
        source_files.read(absent.place)


def test_a_damaged_parquet_page_is_one_line(tmp_path):
    rows = [(f"{i}.png", np.random.default_rng(i).bytes(1 << 12), i) for i in range(10)]
    source = make_parquet(tmp_path / "x.parquet", rows)
    content = bytearray(source.read_bytes())
    content[4:2000] = bytes(1996)
    source.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read row group 0 of .*x\.parquet"):
        for entry in list_sources([str(source)], Scratch(tmp_path)).splits["train"]:
            source_files.read(entry.place)


def test_parquet_files_in_another_order_are_another_source(tmp_path):
    """Their rows are taken in order, so a run can't go on with the files swapped."""
    for name in "ab":
        make_parquet(tmp_path / f"{name}.parquet", [(f"{name}{i}.png", encoded(i), 0) for i in range(3)], ["a"])
    one, other = (
        list_sources([str(tmp_path / f"{name}.parquet") for name in names], Scratch(tmp_path)) for names in ("ab", "ba")
    )
    assert one.fingerprint != other.fingerprint


def test_one_row_group_of_a_parquet_file_is_kept(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    rows = [(f"{i}.png", np.random.default_rng(i).bytes(1 << 20), 0) for i in range(15)]  # 3 groups of 5 MB
    source = make_parquet(tmp_path / "x.parquet", rows, ["a"])
    entries = list_sources([str(source)], Scratch(tmp_path)).splits["train"]
    before = pyarrow.total_allocated_bytes()
    for entry, (_, content, _) in zip(entries, rows, strict=True):
        assert source_files.read(entry.place) == content
    deadline = time.monotonic() + 60
    while pyarrow.total_allocated_bytes() - before >= 8 << 20:  # pyarrow's threads let go a little later
        assert time.monotonic() < deadline, "more than one row group is kept"
        time.sleep(0.01)
