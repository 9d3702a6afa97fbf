"""Samples of WebDataset shards: keys by the library's rule, one image and one label each, or a line that says why."""

import io
import json
import tarfile

import pytest
from image_makers import contents, encoded, write_tree
from test_listing import make_tar, make_zip

from vfmtok.errors import DataError
from vfmtok.sources.listing import Choices, list_sources
from vfmtok.sources.scratch import Scratch
from vfmtok.sources.webdataset import split_key

A, B, C = (encoded(seed, fmt="PNG") for seed in range(3))


def listed(tmp_path, members, *, name="s.tar", **choices):
    source = members if not isinstance(members, dict) else make_tar(tmp_path / name, members)
    return list_sources([str(source)], Scratch(tmp_path / "scratch"), None, Choices(**choices))


def found(listing):
    return [(name, label, content) for name, label, content in contents(listing)["train"]]


def test_keys_are_the_librarys():
    webdataset = pytest.importorskip("webdataset.tariterators")
    for path in ("a.jpg", "a.b.JPG", "x/y.z/a.seg.png", "x.y/a", "a", "f0.1.cls", "x/a..b", "ü/ñ.jpg"):
        key, suffix = webdataset.base_plus_ext(path)
        assert split_key(path) == (None if key is None else (key, suffix.lower())), path


def test_a_key_with_two_labels_is_an_error(tmp_path):
    members = {"f0.1.png": A, "f0.1.cls": b"0", "f0.2.png": B, "f0.2.cls": b"1"}
    with pytest.raises(DataError, match=r"'f0' has several labels: choose by --label-key 1\.cls or 2\.cls"):
        listed(tmp_path, members)
    with pytest.raises(DataError, match=r"several images: choose one by --image-key 1\.png or 2\.png"):
        listed(tmp_path, members, label_key="2.cls")
    assert found(listed(tmp_path, members, label_key="2.cls", image_key="2.png")) == [("1/f0.2.png", 1, B)]
    with pytest.raises(DataError, match=r"two members 'f0\.CLS'"):
        listed(tmp_path, {"f0.png": A, "f0.cls": b"0", "f0.CLS": b"0"})


def test_one_image_per_sample(tmp_path):
    members = {"1.jpg": A, "1.seg.png": B, "1.cls": b"0", "2.jpg": C, "2.seg.png": B, "2.cls": b"1", "3.seg.png": B}
    listing = listed(tmp_path, members)
    assert found(listing) == [("0/1.jpg", 0, A), ("1/2.jpg", 1, C)]
    assert listing.ignored == {".seg.png": 3, "samples without an image": 1}
    masks = listed(tmp_path, {k: v for k, v in members.items() if k[0] != "3"}, image_key="seg.png")
    assert found(masks) == [("0/1.seg.png", 0, B), ("1/2.seg.png", 1, B)] and masks.ignored == {".jpg": 2}
    several = {"1.jpg": A, "1.png": B, "1.cls": b"0"}
    with pytest.raises(DataError, match="--image-key jpg or png"):
        listed(tmp_path, several)
    assert found(listed(tmp_path, several, image_key="png")) == [("0/1.png", 0, B)]
    unlabelled = listed(tmp_path, {"1.jpg": A, "1.seg.png": B, "2.jpg": C})
    assert found(unlabelled) == [("1.jpg", 0, A), ("2.jpg", 0, C)] and unlabelled.classes == ["s"]


@pytest.mark.parametrize(
    ("documents", "labels", "classes"),
    [
        ([{"class_id": 1}, {"class_id": 0}], [1, 0], ["0", "1"]),
        ([{"label": 1, "class_name": "b"}, {"label": 0, "class_name": "a"}], [1, 0], ["a", "b"]),
        ([{"class_id": 1, "class_name": "ant"}, {"class_id": 0, "class_name": "zebra"}], [1, 0], ["zebra", "ant"]),
        ([{"label": 1.0}, {"label": 0.0}], [1, 0], ["0", "1"]),
        ([{"category": "b"}, {"category": "a"}], [1, 0], ["a", "b"]),
        ([{"label": 2, "cls": 2}, {"label": 0, "cls": 0}], [2, 0], ["0", "1", "2"]),
    ],
)
def test_labels_in_json(tmp_path, documents, labels, classes):
    members = {}
    for key, image, document in zip("12", (A, B), documents, strict=True):
        members |= {f"{key}.png": image, f"{key}.json": json.dumps(document).encode()}
    listing = listed(tmp_path, members)
    assert {content: label for _, label, content in found(listing)} == dict(zip((A, B), labels, strict=True))
    assert listing.classes == classes
    flat = listed(tmp_path, write_tree(tmp_path / "flat", members))  # the shard unpacked
    zipped = listed(tmp_path, make_zip(tmp_path / "z.zip", members))
    assert contents(flat) == contents(zipped) == contents(listing) and flat.classes == classes


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.json": b'{"label": 0.5}'}, "label 0.5: labels must be whole numbers or text"),
        ({"1.json": b'{"label": [1, 2]}'}, "whole numbers or text"),
        ({"1.json": b'{"label": true}'}, "whole numbers or text"),
        ({"1.json": b'{"label": null}'}, "has no label"),
        ({"1.json": b'{"label": 1, "class_id": 2}'}, "several labels: choose one by --label-key label or class_id"),
        ({"1.json": b'{"width": 3}'}, "a .json with the keys width: say --label-key KEY"),
        ({"1.json": b"not json"}, "--label-key"),
        ({"1.txt": b"a cat on a mat"}, "a .txt, which may be a caption: say --label-key txt"),
        ({"1.cls": b"0.25"}, "label 0.25: labels must be whole numbers or text"),
        ({"1.cls": b"-1"}, "label -1"),
        ({"1.cls": b""}, "has no label"),
        (
            {"1.cls": b"3", "1.json": b'{"label": 4}'},
            "3 in its .cls, 4 in its .json: --label-key cls or label",
        ),
    ],
)
def test_labels_that_are_none_or_two(tmp_path, members, message):
    with pytest.raises(DataError, match=message) as caught:
        listed(tmp_path, {"1.png": A, **members})
    assert "\n" not in str(caught.value)


def test_labels_in_text(tmp_path):
    numbers = {"1.png": A, "1.txt": b"3\n", "2.png": B, "2.txt": b" 0"}
    assert [(label, content) for _, label, content in found(listed(tmp_path, numbers))] == [(0, B), (3, A)]
    words = {"1.png": A, "1.txt": b"cat", "2.png": B, "2.txt": b"ant"}
    assert listed(tmp_path, words, label_key="txt").classes == ["ant", "cat"]
    assert listed(tmp_path, words, classes_from="none").classes == ["s"]
    floats = {"1.png": A, "1.cls": b"3.0", "2.png": B, "2.cls": b"0"}
    assert {label for _, label, _ in found(listed(tmp_path, floats))} == {0, 3}


def test_label_key_names_a_value(tmp_path):
    members = {"1.png": A, "1.json": b'{"coarse": 1, "fine": "b", "label": 9}', "2.png": B}
    members["2.json"] = b'{"coarse": 0, "fine": "a", "label": 9}'
    assert [label for _, label, _ in found(listed(tmp_path, members, label_key="coarse"))] == [0, 1]
    assert listed(tmp_path, members, label_key="fine").classes == ["a", "b"]
    with pytest.raises(DataError, match=r"has no label 'other' in its \.json"):
        listed(tmp_path, members, label_key="other")


def test_class_folders_count_more_than_what_lies_beside_an_image(tmp_path):
    members = {"cat/1.png": A, "cat/1.txt": b"a cat", "cat/1.json": b'{"width": 24}', "dog/1.png": B}
    members |= {"dog/photo.2.png": C}
    listing = listed(tmp_path, members)
    assert found(listing) == [("cat/1.png", 0, A), ("dog/1.png", 1, B), ("dog/photo.2.png", 1, C)]
    captions = {"1.png": A, "1.txt": b"a cat", "photo.1.png": B}
    assert len(found(listed(tmp_path, write_tree(tmp_path / "photos", captions)))) == 2  # a folder is no shard


def img2dataset(key: str) -> dict[str, bytes]:
    document = {"caption": "a cat", "url": "http://x/1.jpg", "key": key, "status": "success", "width": 24}
    return {f"{key}.jpg": encoded(int(key)), f"{key}.txt": b"a cat", f"{key}.json": json.dumps(document).encode()}


def test_what_img2dataset_writes(tmp_path):
    """Tars, parquet files of metadata and statistics in one folder: images without labels, as in a flat folder."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder, plain = tmp_path / "pictures", {}
    folder.mkdir()
    for shard in range(2):
        members = {}
        for sample in range(3):
            members |= img2dataset(f"{shard:05d}{sample:04d}")
        make_tar(folder / f"{shard:05d}.tar", members)
        plain |= {name: content for name, content in members.items() if name.endswith(".jpg")}
        table = pyarrow.table({"url": ["http://x"] * 3, "caption": ["a cat"] * 3, "status": ["success"] * 3})
        parquet.write_table(table, folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    expected = listed(tmp_path, write_tree(tmp_path / "plain/pictures", plain))
    listing = listed(tmp_path, folder)
    assert contents(listing) == contents(expected) and listing.classes == expected.classes == ["pictures"]
    assert listing.ignored == {".txt": 6, ".json": 8, ".parquet": 2}
    tars = list_sources([str(folder / "{00000..00001}.tar")], Scratch(tmp_path))
    assert tars.classes == ["pictures"] and len(tars) == 6
    files = {f"{shard:05d}/{name}": c for shard in range(2) for name, c in img2dataset(f"{shard:05d}0000").items()}
    unpacked = listed(tmp_path, write_tree(tmp_path / "unpacked", files))  # --output_format files
    assert unpacked.classes == ["unpacked"] and len(unpacked) == 2


def test_a_label_that_cannot_be_read_is_one_line(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, link in (("1.png", None), ("1.cls", "gone.cls")):
            member = tarfile.TarInfo(name)
            member.size, member.type = (len(A), tarfile.REGTYPE) if link is None else (0, tarfile.SYMTYPE)
            member.linkname = link or ""
            archive.addfile(member, io.BytesIO(A) if link is None else None)
    with pytest.raises(DataError, match=r"'1\.cls' of .*s\.tar: a link to 'gone\.cls', which is not in the archive"):
        listed(tmp_path, tmp_path / "s.tar")


def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path):
    members = {"1.png": A, "1.cls": b"\xef\xbb\xbf1", "2.png": A, "2.cls": b"0\r\n"}
    listing = listed(tmp_path, make_tar(tmp_path / "s.tar", members))
    assert [entry.label for entry in listing.splits["train"]] == [0, 1] and listing.classes == ["0", "1"]
