import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from image_makers import class_files, contents, encoded, make_parquet, write_tree

from vfmtok.errors import DataError
from vfmtok.sources import files as source_files
from vfmtok.sources.archives import walk_zip
from vfmtok.sources.listing import SAMPLE, list_sources
from vfmtok.sources.scratch import Scratch


def make_zip(path: Path, files: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def as_shard(files: dict[str, bytes], label_member) -> dict[str, bytes]:
    members = {}
    for name, content in files.items():
        key = name.rsplit(".", 1)[0]
        members[name] = content
        suffix, label = label_member(name.split("/")[0])
        members[f"{key}.{suffix}"] = label
    return members


def test_every_container_of_the_same_images_gives_the_same_records(tmp_path):
    files = {f"{n.split('/')[0]}/{n.replace('/', '-')}": c for n, c in class_files().items()}
    expected = contents(list_sources([str(write_tree(tmp_path / "folder", files))], Scratch(tmp_path)))
    assert [label for _, label, _ in expected["train"]] == [0] * 4 + [1] * 4 + [2] * 4
    assert {name: content for name, _, content in expected["train"]} == files
    backwards = dict(reversed(files.items()))
    names = sorted({name.split("/")[0] for name in files})
    rows = [(name, content, names.index(name.split("/")[0])) for name, content in files.items()]
    sources = [
        make_zip(tmp_path / "a.zip", backwards),
        make_zip(tmp_path / "b.zip", {f"wrapped/{n}": c for n, c in files.items()}, zipfile.ZIP_STORED),
        make_tar(tmp_path / "a.tar", {f"./{n}": c for n, c in backwards.items()}),
        make_tar(tmp_path / "b.tar.gz", files, "w:gz"),
        make_tar(tmp_path / "c.tgz", files, "w:gz"),
        make_tar(tmp_path / "cls.tar", as_shard(backwards, lambda c: ("cls", c.encode()))),
        make_tar(tmp_path / "json.tar", as_shard(files, lambda c: ("json", json.dumps({"label": c}).encode()))),
        make_parquet(tmp_path / "a.parquet", rows, names),
        make_parquet(tmp_path / "b.parquet", [(Path(n).name, c, label) for n, c, label in rows], names),
    ]
    for source in sources:
        listing = list_sources([str(source)], Scratch(tmp_path / "scratch"))
        assert contents(listing) == expected, source.name
        assert listing.classes == names
        assert listing.ignored == {}, source.name


def test_our_zip_reader_agrees_with_pythons(tmp_path):
    files = class_files(per_class=6) | {"bird/ünï.png": encoded(5, fmt="PNG")}
    archive = make_zip(tmp_path / "a.zip", files)
    with zipfile.ZipFile(archive) as opened:
        for found in walk_zip(archive):
            assert source_files.read(found.place) == opened.read(found.path)


def test_webdataset_numbers_stay_labels(tmp_path):
    pytest.importorskip("webdataset")
    code = (  # the library's own writer
        "import sys, webdataset as w\n"
        "for s in range(3):\n"
        "  with w.TarWriter(f'{sys.argv[1]}/train-{s:03d}.tar') as t:\n"
        "    for i in range(4):\n"
        "      t.write({'__key__': f'{i:04d}', 'jpg': bytes.fromhex(sys.argv[2]), 'cls': 10 * s + i})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), encoded(1).hex()], check=True)
    listing = list_sources([str(tmp_path / "train-{000..002}.tar")], Scratch(tmp_path))
    assert sorted(e.label for e in listing.splits["train"]) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert listing.classes == [str(i) for i in range(24)] and set(listing.splits) == {"train"}
    same = list_sources([str(tmp_path / f"train-00{i}.tar") for i in range(3)], Scratch(tmp_path))
    assert contents(same) == contents(listing)
    assert contents(list_sources([str(tmp_path)], Scratch(tmp_path))) == contents(listing)  # the folder of shards


def test_shards_named_after_splits_and_repeated_keys(tmp_path):
    for name in ("train-0", "train-1", "val-0", "test-0"):
        make_tar(tmp_path / f"{name}.tar", {"0.jpg": encoded(len(name)), "0.cls": b"3"})
    listing = list_sources([str(tmp_path / "{train-{0,1},val-0,test-0}.tar")], Scratch(tmp_path))
    assert [e.name for e in listing.splits["train"]] == ["train/3/0.jpg", "train/3/0-2.jpg"]
    assert [e.name for e in listing.splits["val"]] == ["val/3/0.jpg"]
    assert listing.left_out == 1


def test_split_folders_share_their_labels(tmp_path):
    one = encoded(0)
    write_tree(
        tmp_path / "s", {"train/a/1.jpg": one, "train/c/1.jpg": one, "validation/b/1.jpg": one, "test/c/1.jpg": one}
    )
    listing = list_sources([str(tmp_path / "s")], Scratch(tmp_path))
    assert listing.classes == ["a", "b", "c"] and listing.left_out == 1
    assert {s: [(e.name, e.label) for e in entries] for s, entries in listing.splits.items()} == {
        "train": [("train/a/1.jpg", 0), ("train/c/1.jpg", 2)],
        "val": [("validation/b/1.jpg", 1)],
    }
    pair = list_sources([str(tmp_path / "s/train"), str(tmp_path / "s/validation")], Scratch(tmp_path))
    assert {s: [e.name for e in x] for s, x in pair.splits.items()} == {
        "train": ["train/a/1.jpg", "train/c/1.jpg"],
        "val": ["validation/b/1.jpg"],
    }
    write_tree(tmp_path / "vehicles", {"train/1.jpg": one, "bus/1.jpg": one})  # a class may be called train
    assert list_sources([str(tmp_path / "vehicles")], Scratch(tmp_path)).classes == ["bus", "train"]
    with pytest.raises(DataError, match="leave out --val-fraction"):
        list_sources([str(tmp_path / "s")], Scratch(tmp_path), 0.1)


def test_flat_sources_are_one_class_each(tmp_path):
    write_tree(tmp_path / "cats", {"1.jpg": encoded(0), "2.jpg": encoded(1)})
    write_tree(tmp_path / "ants", {"1.jpg": encoded(2)})
    assert list_sources([str(tmp_path / "cats")], Scratch(tmp_path)).classes == ["cats"]
    both = list_sources([str(tmp_path / "cats"), str(tmp_path / "ants")], Scratch(tmp_path))
    assert [(e.name, e.label) for e in both.splits["train"]] == [
        ("ants/1.jpg", 0),
        ("cats/1.jpg", 1),
        ("cats/2.jpg", 1),
    ]
    write_tree(tmp_path / "cats", {"more/3.jpg": encoded(3)})
    with pytest.raises(DataError, match="beside the class folders"):
        list_sources([str(tmp_path / "cats")], Scratch(tmp_path))


def test_val_fraction_is_stable_and_about_right(tmp_path):
    one = encoded(0)
    folder = write_tree(tmp_path / "s", {f"{c}/{i}.jpg": one for c in "abcde" for i in range(80)})
    before = list_sources([str(folder)], Scratch(tmp_path), 0.2)
    assert 50 < len(before.splits["val"]) < 110
    per_class = [sum(e.label == label for e in before.splits["val"]) for label in range(5)]
    assert len(set(per_class)) > 1  # equal numbers in different classes do not move together
    write_tree(folder, {f"a/new{i}.jpg": one for i in range(50)})
    after = list_sources([str(folder)], Scratch(tmp_path), 0.2)
    for split in ("train", "val"):
        assert {e.name for e in before.splits[split]} <= {e.name for e in after.splits[split]}


def test_the_fingerprint_follows_the_sources(tmp_path):
    folder = write_tree(tmp_path / "s", class_files())
    prints = {list_sources([str(folder)], Scratch(tmp_path)).fingerprint}
    assert list_sources([str(folder)], Scratch(tmp_path)).fingerprint in prints
    (folder / "cat/new.jpg").write_bytes(b"12345")
    prints.add(list_sources([str(folder)], Scratch(tmp_path)).fingerprint)
    (folder / "cat/new.jpg").write_bytes(b"123456")
    prints.add(list_sources([str(folder)], Scratch(tmp_path)).fingerprint)
    (folder / "cat/new.jpg").rename(folder / "dog/new.jpg")
    prints.add(list_sources([str(folder)], Scratch(tmp_path)).fingerprint)
    assert len(prints) == 4


def test_files_that_are_no_images_are_counted(tmp_path):
    extra = ["labels.txt", "cat/meta.json", "cat/.DS_Store", "__MACOSX/cat/._000.jpg", "cat/movie.mp4", "run.YAML"]
    folder = write_tree(tmp_path / "s", class_files() | dict.fromkeys(extra, b"x"))
    listing = list_sources([str(folder)], Scratch(tmp_path))
    assert len(listing) == 12 and sum(listing.ignored.values()) == len(extra)
    assert listing.ignored[".txt"] == 1 and listing.ignored[".DS_Store"] == 1


def test_linked_folders_are_followed_once(tmp_path):
    folder = write_tree(tmp_path / "s", class_files(("cat",)))
    write_tree(tmp_path / "elsewhere", {"1.jpg": encoded(3)})
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    (folder / "cat/loop").symlink_to(folder)
    assert len(list_sources([str(folder)], Scratch(tmp_path))) == 5


def test_sources_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    write_tree(tmp_path / "text", {"a/readme.txt": b"x"})
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    (tmp_path / "film.avi").write_bytes(b"x")
    whole = make_tar(tmp_path / "whole.tar", class_files()).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 // 512 * 512 - 300])
    make_tar(tmp_path / "whole.tar.gz", class_files(), "w:gz")
    packed = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(packed[: len(packed) // 2])
    make_tar(tmp_path / "nolabel.tar", {"1.jpg": encoded(0), "1.cls": b"1", "2.jpg": encoded(0)})
    cases = {
        "absent": "no such source", "empty": "no images", "text": "1 .txt", "bad.zip": "cannot read",
        "film.avi": "is no folder", "cut.tar": "cut.tar", "cut.tar.gz": "cannot unpack", "nolabel.tar": "no label",
    }  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            list_sources([str(tmp_path / name)], Scratch(tmp_path / "scratch"))
    write_tree(tmp_path / "folder", class_files())
    make_tar(tmp_path / "numbers.tar", {"1.jpg": encoded(0), "1.cls": b"1"})
    with pytest.raises(DataError, match="by number and some by name"):
        list_sources([str(tmp_path / "folder"), str(tmp_path / "numbers.tar")], Scratch(tmp_path))


def test_the_sample_set_ships_with_its_notice(tmp_path):
    listing = list_sources(["sample"], Scratch(tmp_path))
    assert {split: len(entries) for split, entries in listing.splits.items()} == {"train": 1704, "val": 188}
    assert len(listing.classes) == 9

    with zipfile.ZipFile(SAMPLE) as opened:
        notice = opened.read("NOTICE.txt")
    assert (SAMPLE.parent / "NOTICE.txt").read_bytes() == notice


@pytest.mark.parametrize("label", ["1" + "0" * 20, "2147483648", "10000000", "9" * 5000])
def test_absurd_label_numbers_are_refused(tmp_path, label):
    shard = make_tar(tmp_path / "a.tar", {"1.png": encoded(1), "1.cls": label.encode()})
    with pytest.raises(DataError, match=r"too large|more than 10000000 classes") as caught:
        list_sources([str(shard)], Scratch(tmp_path))
    assert "\n" not in str(caught.value)


def tar_of_tars(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    """As ImageNet's training archive: class/file.jpg -> class.tar, which holds file.jpg."""
    inner = {}
    for name in sorted({name.split("/")[0] for name in files}):
        members = {n.split("/", 1)[1]: c for n, c in files.items() if n.startswith(f"{name}/")}
        inner[f"{name}.tar"] = make_tar(path.with_suffix(".inner"), members).read_bytes()
    return make_tar(path, inner, mode)


def test_a_tar_of_class_tars_is_read_as_the_folder_it_stands_for(tmp_path):
    files = class_files()
    folder = list_sources([str(write_tree(tmp_path / "folder", files))], Scratch(tmp_path))
    with Scratch(tmp_path / "scratch") as scratch:
        for source in (tar_of_tars(tmp_path / "a.tar", files), tar_of_tars(tmp_path / "b.tar.gz", files, "w:gz")):
            listing = list_sources([str(source)], scratch)
            assert contents(listing) == contents(folder)
            assert (listing.classes, listing.fingerprint) == (folder.classes, folder.fingerprint)
            assert listing.ignored == {}
        unpacked = [path.name for path in (tmp_path / "scratch").rglob("*.tar")]
        assert len(unpacked) == 1 and unpacked[0].endswith("b.tar.tar")  # the compressed one, nothing inside it


def test_tars_in_tars_follow_splits_and_hide_what_is_hidden(tmp_path):
    members = {"./deep/1.jpg": encoded(1), "2.jpg": encoded(2), "more.tar": b"x", "a.txt": b""}
    whole = make_tar(tmp_path / "inner", members).read_bytes()
    without_end = whole[: whole.rindex(b"a.txt") + 512]  # the last header, of an empty file
    outer = {"train/a.tar": whole, "val/a.TAR": without_end, "__MACOSX/train/._a.tar": b"shadow", "train/.b.tar": b""}
    listing = list_sources([str(make_tar(tmp_path / "o.tar", outer))], Scratch(tmp_path))
    assert {s: [(e.name, e.label) for e in x] for s, x in listing.splits.items()} == {
        split: [(f"{split}/a/2.jpg", 0), (f"{split}/a/deep/1.jpg", 0)] for split in ("train", "val")
    }
    assert listing.classes == ["a"] and listing.ignored == {".tar": 4, ".txt": 2}


def test_damage_inside_a_tar_is_not_taken_for_its_end(tmp_path):
    files = class_files(per_class=6)
    whole = tar_of_tars(tmp_path / "whole.tar", files).read_bytes()
    second = whole.index(b"cat.tar")
    for number, damaged in enumerate(
        [
            whole[:second] + b"\xff" * 512 + whole[second + 512 :],  # the header of a class
            whole[: second + 512] + b"\xff" * 512 + whole[second + 1024 :],  # the first header in it
            whole.replace(b"003.jpg", b"\xff" * 7, 1),  # one in the midst of the first class
        ]
    ):
        (tmp_path / f"{number}.tar").write_bytes(damaged)
        with pytest.raises(DataError, match=f"cannot read .*{number}.tar"):
            list_sources([str(tmp_path / f"{number}.tar")], Scratch(tmp_path))
    class_tar = make_tar(tmp_path / "class", {"1.jpg": encoded(1), "2.jpg": encoded(2)}).read_bytes()
    for cut in (0, 512, 700, class_tar.index(b"2.jpg") + 600):
        source = make_tar(tmp_path / "cut.tar", {"a.tar": class_tar[:cut], "b.tar": class_tar})
        with pytest.raises(DataError, match=r"'a\.tar'"):
            list_sources([str(source)], Scratch(tmp_path))
