"""Which names are splits, which are classes, and what --split says of them."""

import pytest
from image_makers import encoded, make_parquet, write_tree
from test_listing import make_tar, make_zip

from vfmtok.errors import DataError
from vfmtok.sources.listing import Choices, list_sources
from vfmtok.sources.scratch import Scratch

ONE = encoded(0)


def listed(tmp_path, *sources, split=(), fraction=None, **choices):
    choices = Choices(tuple(split), **choices)
    return list_sources(list(map(str, sources)), Scratch(tmp_path / "scratch"), fraction, choices)


def counts(listing):
    return {split: len(entries) for split, entries in listing.splits.items()} | {"out": listing.left_out}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "VAL", "Test"),
        ("Training", "Validation", "Testing"),
        ("training", "dev", "eval"),
        ("TRAIN", "valid", "Evaluation"),
        ("train2017", "val2017", "test2017"),
        ("train_images", "val_images", "test_images"),
        ("Training Set", "Validation Set", "Test Set"),
    ],
)
def test_spellings_of_splits(tmp_path, train, val, test):
    files = {f"{train}/cat/1.png": ONE, f"{train}/dog/2.png": ONE, f"{val}/cat/3.png": ONE, f"{test}/dog/4.png": ONE}
    folder = write_tree(tmp_path / "s", files)
    archive = make_zip(tmp_path / "s.zip", files)
    wrapped = make_tar(tmp_path / "s.tar", {f"w/deep/{name}": content for name, content in files.items()})
    parts = [folder / name for name in (train, val, test)]
    for sources in ([folder], [archive], [wrapped], parts):
        listing = listed(tmp_path, *sources)
        assert listing.classes == ["cat", "dog"] and counts(listing) == {"train": 2, "val": 1, "out": 1}


def test_a_preview_beside_the_splits_does_not_make_them_classes(tmp_path):
    files = {f"{split}/{name}/1.png": ONE for split in ("Train", "test") for name in ("a", "b")} | {"preview.png": ONE}
    for depth in ("", "w/"):
        nested = {f"{depth}{name}": content for name, content in files.items()} | {"logo.png": ONE}
        folder = write_tree(tmp_path / f"s{len(depth)}", nested)
        for source in (folder, make_zip(tmp_path / f"s{len(depth)}.zip", nested)):
            listing = listed(tmp_path, source)
            assert listing.classes == ["a", "b"] and counts(listing) == {"train": 2, "out": 2}
            assert sum(listing.ignored.values()) == 2


def test_splits_inside_the_classes(tmp_path):
    files = {f"{c}/{s}/{i}.png": ONE for c in ("cat", "dog") for s in ("train", "Test") for i in range(2)}
    listing = listed(tmp_path, write_tree(tmp_path / "s", files))
    assert listing.classes == ["cat", "dog"] and counts(listing) == {"train": 4, "out": 4}
    assert listing.splits["train"][0].name == "cat/train/0.png"
    write_tree(tmp_path / "s", {"bird/other/1.png": ONE})  # a class whose folders are no splits
    with pytest.raises(DataError, match=r"'cat' holds Test and train.* --split none"):
        listed(tmp_path, tmp_path / "s")
    assert counts(listed(tmp_path, tmp_path / "s", split=["none"])) == {"train": 9, "out": 0}


def test_classes_that_look_like_splits(tmp_path):
    for files in (
        {"test tube/1.png": ONE, "train station/2.png": ONE},
        {"dev/1.png": ONE, "ops/2.png": ONE},
        {"test-a/1.png": ONE, "test-b/2.png": ONE},
    ):
        folder = write_tree(tmp_path / f"s{len(list(tmp_path.iterdir()))}", files)
        assert listed(tmp_path, folder).classes == sorted(name.split("/")[0] for name in files)
    both = write_tree(tmp_path / "both", {"train/1.png": ONE, "test/2.png": ONE, "plane/3.png": ONE})
    with pytest.raises(DataError, match=r"test and train are splits, but what is plane\? Say --split plane=train"):
        listed(tmp_path, both)
    assert listed(tmp_path, both, split=["none"]).classes == ["plane", "test", "train"]
    assert counts(listed(tmp_path, both, split=["plane=val"])) == {"train": 1, "val": 1, "out": 1}


def test_what_the_user_says_of_splits(tmp_path):
    files = {f"{s}/{c}/1.png": ONE for s in ("train", "test", "holdout") for c in ("a", "b")}
    folder = write_tree(tmp_path / "s", files)
    with pytest.raises(DataError, match="--split holdout="):
        listed(tmp_path, folder)
    assert counts(listed(tmp_path, folder, split=["holdout=test"])) == {"train": 2, "out": 4}
    rules = ["holdout=val", "test=train"]
    assert counts(listed(tmp_path, folder, split=rules)) == {"train": 4, "val": 2, "out": 0}
    sources = [folder / "train", folder / "holdout"]
    with pytest.raises(DataError, match="--split holdout=train"):
        listed(tmp_path, *sources)
    assert counts(listed(tmp_path, *sources, split=["holdout=val"])) == {"train": 2, "val": 2, "out": 0}
    with pytest.raises(DataError, match="--split tset=val: no folder, source or split is called tset"):
        listed(tmp_path, folder, split=["holdout=test", "tset=val"])
    for rule in ("test", "test=", "=val", "test=out", "none=train=x"):
        with pytest.raises(DataError, match="--split takes"):
            listed(tmp_path, folder, split=[rule])
    with pytest.raises(DataError, match="leave out --val-fraction"):
        listed(tmp_path, folder, split=["test=val", "holdout=test"], fraction=0.5)


def test_splits_of_tables(tmp_path):
    """A data set with training and test only, as CIFAR-10; and the folders of the Hub's own conversion."""
    for name in ("plain/train-00000-of-00001", "plain/test-00000-of-00001", "hub/default/train/0000"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        make_parquet(tmp_path / f"{name}.parquet", [("1.png", ONE, 0)], ["a"])
    (tmp_path / "hub/default/test").mkdir()
    make_parquet(tmp_path / "hub/default/test/0000.parquet", [("2.png", ONE, 0)], ["a"])
    for place in ("plain", "hub", "hub/default"):
        assert counts(listed(tmp_path, tmp_path / place)) == {"train": 1, "out": 1}
        assert counts(listed(tmp_path, tmp_path / place, split=["test=val"])) == {"train": 1, "val": 1, "out": 0}
    (tmp_path / "hub/small/train").mkdir(parents=True)
    make_parquet(tmp_path / "hub/small/train/0000.parquet", [("1.png", ONE, 0)], ["a"])
    with pytest.raises(DataError, match="holds default, small: name the one that is meant"):
        listed(tmp_path, tmp_path / "hub")


def test_what_is_left_out_needs_no_labels(tmp_path):
    (tmp_path / "s").mkdir()
    make_tar(tmp_path / "s/train-0.tar", {"1.png": ONE, "1.cls": b"0"})
    make_tar(tmp_path / "s/test-0.tar", {"1.png": ONE, "1.json": b'{"id": 1}'})
    assert counts(listed(tmp_path, tmp_path / "s")) == {"train": 1, "out": 1}
    with pytest.raises(DataError, match="say --label-key KEY"):
        listed(tmp_path, tmp_path / "s", split=["test=val"])
    with pytest.raises(DataError, match="--label-key x: no sample and no table has such a label"):
        listed(tmp_path, write_tree(tmp_path / "f", {"a/1.png": ONE}), label_key="x")


def test_one_split_alone_is_said_to_be_train(tmp_path):
    listing = listed(tmp_path, write_tree(tmp_path / "s", {"test/a/1.png": ONE, "test/b/2.png": ONE}))
    assert counts(listing) == {"train": 2, "out": 0}
    assert any("split called 'test'" in note for note in listing.notes)


def test_archives_that_hold_one_split_each(tmp_path):
    """What lies in the one folder train/ of an archive is not test/ of another."""
    archives = [make_zip(tmp_path / f"{n}.zip", {f"{n}/a/1.png": ONE, f"{n}/b/2.png": ONE}) for n in ("train", "test")]
    odd = [path.rename(tmp_path / f"part{n}.zip") for n, path in enumerate(archives)]
    assert counts(listed(tmp_path, *odd)) == {"train": 2, "out": 2}


def test_a_folder_in_every_split_is_looked_through(tmp_path):
    files = {f"{split}/images/{name}/1.png": ONE for split in ("train", "val") for name in ("cat", "dog")}
    listing = listed(tmp_path, write_tree(tmp_path / "s", files))
    assert listing.classes == ["cat", "dog"] and counts(listing) == {"train": 2, "val": 2, "out": 0}
    assert {entry.name for entry in listing.splits["val"]} == {"val/images/cat/1.png", "val/images/dog/1.png"}
    one = {"train/cat/1.png": ONE, "train/cat/2.png": ONE, "val/cat/3.png": ONE}  # here it is the class
    assert listed(tmp_path, write_tree(tmp_path / "one", one)).classes == ["cat"]
    fewer = {"train/cat/a/1.png": ONE, "train/dog/2.png": ONE, "val/cat/3.png": ONE}
    assert listed(tmp_path, write_tree(tmp_path / "fewer", fewer)).classes == ["cat", "dog"]


def test_tiny_imagenet(tmp_path):
    """train/CLASS/images/, val/images/ with the labels in val_annotations.txt, test/images/ without any."""
    classes = ("n01629819", "n01443537")
    files = {f"train/{name}/images/{name}_{i}.JPEG": ONE for name in classes for i in range(2)}
    files |= {f"{split}/images/{split}_{i}.JPEG": ONE for split in ("val", "test") for i in range(4)}
    folder = write_tree(tmp_path / "tiny-imagenet-200", files | {"wnids.txt": b"n01629819\nn01443537\n"})
    with pytest.raises(DataError, match=r"4 images such as 'val/images/val_0\.JPEG' have no class"):
        listed(tmp_path, folder)
    rows = "".join(f"val_{i}.JPEG\t{classes[i % 2]}\t0\t32\t44\t62\n" for i in range(4))
    (folder / "val/val_annotations.txt").write_text(rows)
    for choices in ({}, {"classes_from": str(folder / "val/val_annotations.txt")}):
        listing = listed(tmp_path, folder, **choices)
        assert listing.classes == sorted(classes) and counts(listing) == {"train": 4, "val": 4, "out": 4}
        assert {entry.name[-6]: entry.label for entry in listing.splits["val"]} == {"0": 1, "1": 0, "2": 1, "3": 0}


@pytest.mark.parametrize(
    "files",
    [
        ["cat/train/1.png", "cat/test/2.png", "dog/3.png"],
        ["cat/train/1.png", "cat/test/2.png", "dog/all/3.png"],
        ["data/train/cat/1.png", "data/val/dog/2.png", "extra/3.png"],
    ],
)
def test_splits_in_some_folders_only_are_no_classes(tmp_path, files):
    folder = write_tree(tmp_path / "s", dict.fromkeys(files, ONE))
    with pytest.raises(DataError, match=r"holds (test and train|train and val)"):
        listed(tmp_path, folder)
    assert counts(listed(tmp_path, folder, split=["none"])) == {"train": 3, "out": 0}
