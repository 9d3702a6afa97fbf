"""Sources in parquet: what is particular to them."""

import json
import time

import numpy as np
import pytest
from image_makers import contents, encoded, make_parquet, write_tree

from vfmtok.errors import DataError
from vfmtok.sources import files as source_files
from vfmtok.sources.listing import Choices, list_sources
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


def _table(path, columns, features=None, row_group_size=4):
    """A parquet file of these columns, with what `datasets` writes of them."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def _images(count):
    return [{"bytes": encoded(i, fmt="PNG"), "path": None} for i in range(count)]


def _names(*names):
    return {"names": list(names), "_type": "ClassLabel"}


IMAGE = {"_type": "Image"}


def listed(tmp_path, *sources, **choices):
    return list_sources(list(map(str, sources)), Scratch(tmp_path), None, Choices(**choices))


def labels_by_content(listing):
    return {content: label for part in contents(listing).values() for _, label, content in part}


def test_cifar_10_and_imagenette(tmp_path):
    """Columns `img` and `label`; `image` and `label` of several sizes: the same as class folders of the same images."""
    images, labels = _images(10), [3, 1, 0, 2, 3, 1, 0, 2, 1, 1]
    names = ["airplane", "bird", "cat", "deer"]  # as sorted as CIFAR's are
    files = {f"{names[x]}/{i}.png": image["bytes"] for i, (image, x) in enumerate(zip(images, labels, strict=True))}
    plain = listed(tmp_path, write_tree(tmp_path / "plain", files))
    for column in ("img", "image", "jpg"):
        features = {column: IMAGE, "label": _names(*names)}
        file = _table(tmp_path / f"{column}.parquet", {column: images, "label": labels}, features)
        listing = listed(tmp_path, file)
        assert labels_by_content(listing) == labels_by_content(plain) and listing.classes == plain.classes


def test_cifar_100_has_two_labels(tmp_path):
    columns = {"img": _images(3), "fine_label": [2, 0, 1], "coarse_label": [1, 0, 1]}
    features = {"img": IMAGE, "fine_label": _names("a", "b", "c"), "coarse_label": _names("x", "y")}
    file = _table(tmp_path / "0.parquet", columns, features)
    with pytest.raises(DataError, match="columns fine_label, coarse_label: choose one by --label-key"):
        listed(tmp_path, file)
    fine, coarse = (listed(tmp_path, file, label_key=key) for key in ("fine_label", "coarse_label"))
    assert [e.label for e in fine.splits["train"]] == [2, 0, 1] and fine.classes == ["a", "b", "c"]
    assert [e.label for e in coarse.splits["train"]] == [1, 0, 1] and coarse.classes == ["x", "y"]
    with pytest.raises(DataError, match=r"has no column 'other' \(--label-key\), only img, fine_label, coarse_label"):
        listed(tmp_path, file, label_key="other")


def test_columns_of_other_kinds(tmp_path):
    images = _images(4)
    raw = [image["bytes"] for image in images]
    shard = {"__key__": ["x/a", "b", "c", "d"], "jpg": images, "cls": [1, 0, 1, 0], "json": [{"w": 1}] * 4}
    webdataset = _table(tmp_path / "w.parquet", shard, {"jpg": IMAGE, "cls": {"dtype": "int64", "_type": "Value"}})
    assert [e.name for e in listed(tmp_path, webdataset).splits["train"]] == ["1/a", "0/b", "1/c", "0/d"]
    bare = _table(tmp_path / "b.parquet", {"image": raw, "label": [1.0, 0.0, 1.0, 0.0]})
    assert labels_by_content(listed(tmp_path, bare)) == dict(zip(raw, [1, 0, 1, 0], strict=True))
    masks = {"image": images, "mask": images, "label": ["b", "a", "b", "a"]}
    both = listed(tmp_path, _table(tmp_path / "m.parquet", masks, {"image": IMAGE, "mask": IMAGE}))
    assert labels_by_content(both) == dict(zip(raw, [1, 0, 1, 0], strict=True)) and both.ignored == {"column 'mask'": 1}
    views = _table(tmp_path / "v.parquet", {"left": images, "right": images, "label": [0] * 4})
    with pytest.raises(DataError, match="columns left, right: choose one by --image-key"):
        listed(tmp_path, views)
    assert len(listed(tmp_path, views, image_key="right")) == 4
    captions = _table(tmp_path / "c.parquet", {"image": images, "text": ["a cat"] * 4}, {"image": IMAGE})
    with pytest.raises(DataError, match="no column of labels: choose one by --label-key, or --classes-from none"):
        listed(tmp_path, captions)
    assert listed(tmp_path, captions, classes_from="none").classes == ["c"]
    for name, columns in (("t", {"text": ["x"]}), ("p", {"image": ["a.png"], "label": [0]})):
        with pytest.raises(DataError, match="no column of images"):
            listed(tmp_path, _table(tmp_path / f"{name}.parquet", columns))
