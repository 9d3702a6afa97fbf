"""Links: names come from the path that the user gave, what they lead to is an image like any other."""

import io
import os
import shutil
import subprocess
import tarfile
import zipfile

import pytest
from image_makers import class_files, contents, encoded, make_parquet, write_tree
from test_listing import as_shard, make_tar

from vfmtok.errors import DataError
from vfmtok.sources import files as source_files
from vfmtok.sources.archives import walk_tar
from vfmtok.sources.folders import walk_folder
from vfmtok.sources.listing import list_sources
from vfmtok.sources.scratch import Scratch


def listed(tmp_path, *sources):
    return list_sources(list(map(str, sources)), Scratch(tmp_path / "scratch"))


SPLIT = {f"{split}/{name}": content for split in ("train", "test") for name, content in class_files().items()}


def test_linked_splits_are_the_splits_they_are_called(tmp_path):
    write_tree(tmp_path / "blobs", {name.replace("train", "d1").replace("test", "d2"): c for name, c in SPLIT.items()})
    (tmp_path / "s").mkdir()
    (tmp_path / "s/train").symlink_to("../blobs/d1")
    (tmp_path / "s/test").symlink_to("../blobs/d2")
    plain = listed(tmp_path, write_tree(tmp_path / "plain", SPLIT))
    assert plain.left_out == 12
    for sources in ([tmp_path / "s"], [tmp_path / "s/train", tmp_path / "s/test/"]):
        listing = listed(tmp_path, *sources)
        assert contents(listing) == contents(plain) and listing.left_out == 12
        assert listing.fingerprint == plain.fingerprint


def test_shards_that_are_links_into_a_cache(tmp_path):
    """As the Hub's cache has them, in parquet and in tars; also named by the repository."""
    repository = tmp_path / "datasets--me--birds"
    snapshot = repository / "snapshots/abc/data"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    write_tree(repository / "refs", {"main": b"abc"})
    plain = tmp_path / "plain"
    plain.mkdir()
    for number, split in enumerate(("train", "test")):
        rows = [(f"{split}{i}.png", encoded(i + 9 * number), i % 2) for i in range(6)]
        file = make_parquet(plain / f"{split}-00000-of-00001.parquet", rows, ["a", "b"])
        shutil.copy(file, repository / f"blobs/{number}f3a")
        (snapshot / file.name).symlink_to(f"../../../blobs/{number}f3a")
    expected = listed(tmp_path, plain)
    assert expected.left_out == 6 and len(expected) == 6
    for source in (snapshot, repository, snapshot.parent):
        found = listed(tmp_path, source)
        assert contents(found) == contents(expected) and found.fingerprint == expected.fingerprint
    (repository / "snapshots/def").mkdir()
    assert len(listed(tmp_path, repository)) == 6  # refs/main says which
    (repository / "refs/main").unlink()
    with pytest.raises(DataError, match="holds 2 snapshots"):
        listed(tmp_path, repository)


def test_tars_that_are_links(tmp_path):
    (tmp_path / "s").mkdir()
    for number, split in enumerate(("train", "val", "test")):
        tar = make_tar(tmp_path / f"blob{number}", as_shard({"a/1.jpg": encoded(number)}, lambda c: ("cls", b"0")))
        (tmp_path / f"s/{split}-0.tar").symlink_to(tar)
    listing = listed(tmp_path, tmp_path / "s")
    assert {s: len(e) for s, e in listing.splits.items()} == {"train": 1, "val": 1} and listing.left_out == 1
    assert listed(tmp_path, tmp_path / "s/train-0.tar", tmp_path / "s/test-0.tar").left_out == 1
    assert len(listed(tmp_path, tmp_path / "blob0")) == 1  # an archive by its content


def test_a_farm_of_links_is_the_folder_it_stands_for(tmp_path):
    """As DVC and git-annex leave it: every image is a link into a hidden cache; two classes may share theirs."""
    files = class_files()
    farm = tmp_path / "farm"
    for number, (name, content) in enumerate(files.items()):
        write_tree(farm / ".cache/files", {f"{number:02x}/{'f' * 30}": content})
        (farm / name).parent.mkdir(exist_ok=True)
        (farm / name).symlink_to(f"../.cache/files/{number:02x}/{'f' * 30}")
    (farm / ".dvc").mkdir()
    (farm / "bird.dvc").write_text("outs:")
    assert contents(listed(tmp_path, farm)) == contents(listed(tmp_path, write_tree(tmp_path / "plain", files)))
    (farm / "gull").symlink_to("bird")
    (farm / "bird/loop").symlink_to("..")
    both = listed(tmp_path, farm)
    assert both.classes == ["bird", "cat", "dog", "gull"] and len(both) == 16
    write_tree(tmp_path / "x", {"1.png": encoded(1)})
    (tmp_path / "d").mkdir()
    for name in "ab":
        (tmp_path / "d" / name).symlink_to("../x")
    assert [e.name for e in listed(tmp_path, tmp_path / "d").splits["train"]] == ["a/1.png", "b/1.png"]


def test_links_in_a_tar_are_images_like_any_other(tmp_path):
    files = class_files(("cat",))
    folder = write_tree(tmp_path / "s", files)
    os.link(folder / "cat/000.png", folder / "cat/hard.png")
    (folder / "cat/soft.png").symlink_to("002.png")
    (folder / "dog").symlink_to("cat")
    (folder / "cat/absent.png").symlink_to("/etc/nothing.png")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(folder, "s")
    listing = listed(tmp_path, tmp_path / "s.tar")
    readable = [entry for entry in listing.splits["train"] if entry.place[0] != "unusable"]
    found = {entry.name: source_files.read(entry.place) for entry in readable}
    linked = files | {"cat/hard.png": files["cat/000.png"], "cat/soft.png": files["cat/002.png"]}
    assert found == linked | {name.replace("cat", "dog"): content for name, content in linked.items()}
    odd = [entry for entry in listing.splits["train"] if entry.place[0] == "unusable"]
    assert {entry.name for entry in odd} == {"cat/absent.png", "dog/absent.png"}
    with pytest.raises(source_files.CorruptFile, match="which is not in the archive"):
        source_files.read(odd[0].place)


def test_links_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("a/1.png", encoded(1))
        link = zipfile.ZipInfo("b/2.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../a/1.png")
    assert contents(listed(tmp_path, tmp_path / "s.zip")) == {
        "train": [("a/1.png", 0, encoded(1)), ("b/2.png", 1, encoded(1))]
    }


@pytest.mark.parametrize("layout", ["gnu", "posix", "oldgnu"])
def test_sparse_members_have_their_own_bytes(tmp_path, layout):
    """A bitmap with a hole in its middle and one at its end, before another file."""
    content = encoded(1, (256, 128), "BMP")
    content = content[:20_000] + bytes(40_960) + content[60_960:-20_000] + bytes(20_000)
    folder = write_tree(tmp_path / "s", {"a/after.png": encoded(2)})
    with open(folder / "a/1.bmp", "wb") as file:
        file.write(content[:20_000])
        file.seek(60_960)
        file.write(content[60_960:-20_000])
        file.truncate(len(content))
    command = ["tar", "--sparse", "--hole-detection=raw", f"--format={layout}", "-cf", tmp_path / "s.tar"]
    subprocess.run([*command, "-C", folder, "a/1.bmp", "a/after.png"], check=True)
    assert os.path.getsize(tmp_path / "s.tar") < len(content)
    outer = make_tar(tmp_path / "outer.tar", {"b.tar": (tmp_path / "s.tar").read_bytes()})
    for tar in (tmp_path / "s.tar", outer):
        found = {file.path.split("/")[-1]: source_files.read(file.place) for file in walk_tar(tar, Scratch(tmp_path))}
        assert found == {"1.bmp": content, "after.png": encoded(2)}


def test_a_file_that_an_archive_holds_twice_is_the_later_one(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for content in (b"old", encoded(1)):
            member = tarfile.TarInfo("a/1.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert contents(listed(tmp_path, tmp_path / "s.tar")) == {"train": [("a/1.png", 0, encoded(1))]}


def test_a_walk_without_sizes_finds_the_same_files(tmp_path):
    """Sizes are left out where they decide nothing; what is no regular file is still known."""
    folder = write_tree(
        tmp_path / "d", {"a/1.png": b"1", "a/note.txt": b"text", "b/2.png": b"22", "b/odd": b"\x89PNG\r\n"}
    )
    (folder / "a/link.png").symlink_to("../b/2.png")
    (folder / "a/broken.png").symlink_to("nowhere")
    (folder / "c").symlink_to("b")
    os.mkfifo(folder / "b/pipe.png")
    with_sizes, without = ([found._replace(size=0) for found in walk_folder(folder, sizes)] for sizes in (True, False))
    assert with_sizes == without
    assert {found.path for found in without if found.place[0] == "unusable"} >= {
        "a/broken.png",
        "b/pipe.png",
        "c/pipe.png",
    }
