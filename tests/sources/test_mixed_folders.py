"""Folders that hold more than one thing: what most of the bytes are counts, the rest is counted."""

import json
import shutil

import pytest
from image_makers import class_files, contents, encoded, make_parquet, noise, write_tree
from test_listing import as_shard, make_tar, make_zip, tar_of_tars

from vfmtok.errors import DataError
from vfmtok.sources.listing import Choices, list_sources
from vfmtok.sources.scratch import Scratch
from vfmtok.sources.table import describe


def listed(tmp_path, *sources, **choices):
    return list_sources(list(map(str, sources)), Scratch(tmp_path / "scratch"), None, Choices(**choices))


@pytest.fixture
def plain(tmp_path):
    return listed(tmp_path, write_tree(tmp_path / "plain/s", class_files()))


STRAYS = {
    "preview.png": encoded(50, (32, 32), fmt="PNG"),
    "LICENSE": b"BSD",
    "README.md": b"#",
    "dataset_infos.json": b"{}",
}


@pytest.mark.parametrize("kind", ["tars", "class tars", "zips", "parquet", "class folders"])
def test_strays_are_counted(tmp_path, plain, kind):
    folder, files = tmp_path / "s", class_files()
    folder.mkdir()
    if kind == "tars":
        keyed = {f"{name.split('/')[0]}/{name.replace('/', '-')}": content for name, content in files.items()}
        plain = listed(tmp_path, write_tree(tmp_path / "keyed/s", keyed))
        items = list(keyed.items())
        for number in range(2):
            make_tar(folder / f"{number}.tar", as_shard(dict(items[number::2]), lambda c: ("cls", c.encode())))
    elif kind == "class tars":
        for name in ("bird", "cat", "dog"):
            make_tar(folder / f"{name}.tar", {n.split("/")[1]: c for n, c in files.items() if n.startswith(name)})
    elif kind == "zips":
        for name in ("bird", "cat", "dog"):
            make_zip(folder / f"{name}.zip", {n.split("/")[1]: c for n, c in files.items() if n.startswith(name)})
    elif kind == "parquet":
        rows = [(name, content, ["bird", "cat", "dog"].index(name.split("/")[0])) for name, content in files.items()]
        make_parquet(folder / "0.parquet", rows, ["bird", "cat", "dog"])
    else:
        write_tree(folder, files)
    for strays in ({}, STRAYS):
        listing = listed(tmp_path, write_tree(folder, strays))
        assert contents(listing) == contents(plain) and listing.classes == plain.classes
        assert sum(listing.ignored.values()) == len(strays)
    assert any("1 LICENSE" in line for line in describe(listing))


def test_two_kinds_of_about_the_same_size_are_an_error(tmp_path):
    files = {f"a/{i}.png": noise(i) for i in range(4)}
    folder = write_tree(tmp_path / "s", files)
    make_tar(folder / "all.tar", files)
    with pytest.raises(DataError, match=r"holds both archives \(such as all.tar\) and a folder of images") as caught:
        listed(tmp_path, folder)
    assert "name the files or the folder in it that are meant" in str(caught.value)
    assert len(listed(tmp_path, folder / "all.tar")) == 4


def test_files_without_an_extension_are_images_by_their_first_bytes(tmp_path):
    files = {"cat/one": encoded(1), "cat/two.scan": encoded(2, fmt="PNG"), "dog/three": encoded(3, fmt="WEBP")}
    junk = {"cat/LICENSE": b"Copyright", "cat/Makefile": b"all:", "dog/data.bin2": bytes(40), "dog/empty": b""}
    for source in (
        write_tree(tmp_path / "s", files | junk),
        make_tar(tmp_path / "s.tar", files | junk),
        make_zip(tmp_path / "s.zip", files | junk),
    ):
        listing = listed(tmp_path, source)
        assert {name: content for name, _, content in contents(listing)["train"]} == files
        assert sum(listing.ignored.values()) == 4


def test_a_wrapper_is_looked_through_in_folders_and_archives(tmp_path, plain):
    files = class_files()
    for depth in ("w", "w/x y/z"):
        wrapped = {f"{depth}/{name}": content for name, content in files.items()}
        for source in (
            write_tree(tmp_path / f"f{len(depth)}", wrapped),
            make_zip(tmp_path / f"{len(depth)}.zip", wrapped),
            make_tar(tmp_path / f"{len(depth)}.tar", wrapped),
        ):
            listing = listed(tmp_path, source)
            assert contents(listing) == contents(plain) and listing.fingerprint[:0] == ""
    one = listed(tmp_path, write_tree(tmp_path / "one", {"cat/1.png": encoded(1)}))
    assert one.classes == ["cat"]


def test_what_macs_and_editors_leave_behind(tmp_path, plain):
    files = class_files()
    shadows = {f"__MACOSX/{name.replace('/', '/._')}": b"\0\5\x16\7" for name in files} | {"__MACOSX/._bird": b"\0"}
    archive = make_zip(tmp_path / "mac.zip", {**files, **shadows, ".DS_Store": b"", "cat/.DS_Store": b""})
    assert contents(listed(tmp_path, archive)) == contents(plain)
    wrapped = {f"birds/{name}": content for name, content in files.items()} | shadows
    assert contents(listed(tmp_path, make_zip(tmp_path / "w.zip", wrapped))) == contents(plain)
    left = {
        f"cat/{name}": encoded(9) for name in (".ipynb_checkpoints/000-checkpoint.png", "._000.png", "@eaDir/x.jpg")
    }
    folder = write_tree(tmp_path / "s", files | left | {"Thumbs.db": b"x", "desktop.ini": b"x"})
    listing = listed(tmp_path, folder)
    assert contents(listing) == contents(plain) and sum(listing.ignored.values()) == 5


def test_unlabelled_archives_that_are_numbered_are_an_error(tmp_path):
    (tmp_path / "s").mkdir()
    for number in range(3):
        make_tar(tmp_path / f"s/part-{number}.tar", {f"{number}.png": encoded(number)})
    with pytest.raises(DataError, match=r"part-0, part-1, \.\.\. hold images without labels: --classes-from sources"):
        listed(tmp_path, tmp_path / "s")
    assert listed(tmp_path, tmp_path / "s", classes_from="sources").classes == ["part-0", "part-1", "part-2"]
    assert listed(tmp_path, tmp_path / "s", classes_from="none").classes == ["s"]


def test_a_flat_part_beside_class_folders(tmp_path):
    """In a split of its own, or a source of its own: it is no class of the split's or source's name."""
    one = encoded(1)
    folder = write_tree(tmp_path / "s", {"train/a/1.png": one, "train/b/1.png": one, "val/1.png": one})
    photos = write_tree(tmp_path / "photos", {"1.png": one})
    with pytest.raises(DataError, match=r"1 images such as 'val/1\.png' have no class, and others do: --classes-from"):
        listed(tmp_path, folder)
    sources = [write_tree(tmp_path / "x", {"a/1.png": one}), photos]
    with pytest.raises(DataError, match="--classes-from sources makes a class of the source's name"):
        listed(tmp_path, *sources)
    both = listed(tmp_path, *sources, classes_from="sources")
    assert both.classes == ["a", "photos"]
    pair = write_tree(tmp_path / "faces", {"train/1.png": one, "val/2.png": one})  # no part has classes
    for sources in ([pair], [pair / "train", pair / "val"]):
        assert listed(tmp_path, *sources).classes == ["faces"]


def test_the_tar_of_class_tars_and_the_folder_of_them(tmp_path, plain):
    files = class_files()
    tar_of_tars(tmp_path / "outer.tar", files)
    shutil.unpack_archive(tmp_path / "outer.tar", tmp_path / "unpacked")
    for source in (tmp_path / "outer.tar", tmp_path / "unpacked"):
        assert contents(listed(tmp_path, source)) == contents(plain)


def test_tables_of_labels(tmp_path):
    files = {f"img/{i:02d}.png": encoded(i, fmt="PNG") for i in range(6)}
    names = ["cat", "ant", "cat", "bee", "ant", "cat"]
    folder = write_tree(tmp_path / "flat", files)
    rows = list(zip(files, names, strict=True))
    tables = {
        "a.csv": "filename,label\n" + "".join(f"{f},{n}\n" for f, n in rows),
        "ids.csv": "id,breed\n" + "".join(f"{f[4:-4]},{n}\n" for f, n in rows),
        "more.csv": "image,width,label,source\n" + "".join(f'{f[4:]},24,{n},"a, b"\n' for f, n in rows),
        "elsewhere.csv": "path,class_name\n" + "".join(f"/data/{f},{n}\n" for f, n in rows),
        "t.tsv": "image\tlabel\n" + "".join(f"{f}\t{n}\n" for f, n in rows),
        "l.jsonl": "".join(json.dumps({"file_name": f, "label": n}) + "\n" for f, n in rows),
        "list.txt": "".join(f"{f} {n}\n" for f, n in rows),
        "lines.txt": "".join(f"{n}\n" for n in names),
    }
    write_tree(tmp_path / "tables", {name: text.encode() for name, text in tables.items()})
    expected = {f: sorted(set(names)).index(n) for f, n in rows}
    for table in tables:
        for sources, choices in (
            ([folder], {"classes_from": str(tmp_path / "tables" / table)}),
            ([folder, tmp_path / "tables" / table], {}),
        ):
            listing = listed(tmp_path, *sources, **choices)
            found = {entry.name.replace("flat/", ""): entry.label for entry in listing.splits["train"]}
            assert listing.classes == ["ant", "bee", "cat"], table
            assert {f"img/{name.split('/')[-1]}": label for name, label in found.items()} == expected, table
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("image,y,label\n" + "".join(f"{f},{i},{9 - i}\n" for i, (f, _) in enumerate(rows[:5])))
    listing = listed(tmp_path, folder, classes_from=str(numbers))
    assert [entry.label for entry in listing.splits["train"]] == [9, 8, 7, 6, 5]
    assert listing.ignored == {"images without a label in numbers.csv": 1}
    assert listed(tmp_path, folder, classes_from=str(numbers), label_key="y").classes == ["0", "1", "2", "3", "4"]


def test_a_table_beside_the_images(tmp_path):
    files = {f"{i}.png": encoded(i, fmt="PNG") for i in range(4)}
    text = "file_name,label\n" + "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(files))
    flat = write_tree(tmp_path / "flat", files | {"labels.csv": text.encode(), "notes.csv": b"x,y\n1,2\n"})
    with pytest.raises(DataError, match=r"labels.csv may hold the labels of 4 images: --classes-from .*labels.csv"):
        listed(tmp_path, flat)
    assert listed(tmp_path, flat, classes_from="sources").classes == ["flat"]
    assert listed(tmp_path, flat, classes_from=str(flat / "labels.csv")).classes == ["a", "b"]
    shutil.move(flat / "labels.csv", flat / "metadata.csv")  # the convention of `datasets`
    assert [entry.label for entry in listed(tmp_path, flat).splits["train"]] == [0, 1, 0, 1]
    split = write_tree(tmp_path / "s", {f"{s}/{name}": c for s in ("train", "test") for name, c in files.items()})
    for name in ("train", "test"):
        shutil.copy(flat / "metadata.csv", split / name)
    listing = listed(tmp_path, split)
    assert listing.classes == ["a", "b"] and listing.left_out == 4
    (flat / "metadata.csv").write_text("file_name,text\n0.png,a cat\n")  # captions
    assert listed(tmp_path, flat).classes in (["flat"], ["a cat"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\n0.png,a\n0.png,b\n", "two labels for '0.png': a and b"),
        ("image,label,class\n0.png,a,b\n", "several labels: choose one by --label-key label or class"),
        ("image,label\n0.png,0.5\n", "whole numbers or text"),
        ("picture,label\n0.png,a\n", "no column of images"),
        ("image,x,y\n0.png,1,2\n", "has no label: --label-key names its column, of x, y"),
        ("image,label\n7.png,a\n", "has no label for any of 2 images"),
        ("", "no column of images"),
        ("ImageId,PredictionString\n0,\n1,n01440764 1 2 3 4\n", "line 2 has no label"),
        ("image,label\n0.png\n", "line 2 has no label"),
    ],
)
def test_tables_that_do_not_say_it(tmp_path, text, message):
    folder = write_tree(tmp_path / "s", {"0.png": encoded(0), "1.png": encoded(1)})
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        listed(tmp_path, folder, classes_from=str(tmp_path / "t.csv"))
    assert "\n" not in str(caught.value)


def test_the_order_of_classes_may_be_given(tmp_path):
    folder = write_tree(tmp_path / "s", {f"{n}/1.png": encoded(n) for n in (1, 2, 10)})
    listing = listed(tmp_path, folder)
    assert listing.classes == ["1", "10", "2"] and "class '1' has label 0" in " ".join(listing.notes)
    (tmp_path / "classes.txt").write_text("".join(f"{n}\n" for n in range(11)))
    ordered = listed(tmp_path, folder, classes_from=str(tmp_path / "classes.txt"))
    assert {e.name: e.label for e in ordered.splits["train"]} == {"1/1.png": 1, "2/1.png": 2, "10/1.png": 10}
    assert len(ordered.classes) == 11
    (tmp_path / "classes.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match=r"class '10' is not among the 2 that classes.txt lists"):
        listed(tmp_path, folder, classes_from=str(tmp_path / "classes.txt"))
    with pytest.raises(DataError, match="takes a file, imagenet, sources or none"):
        listed(tmp_path, folder, classes_from=str(tmp_path / "gone.txt"))
