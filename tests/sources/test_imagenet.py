"""ImageNet in every form that people have it in: the same labels, or a line that says what is missing."""

import json
import shutil
from pathlib import Path

import imagenet_makers as makers
import pytest
from image_makers import make_parquet, write_tree

from vfmtok.cli import main
from vfmtok.data.records import RecordDataset
from vfmtok.errors import DataError
from vfmtok.sources import imagenet
from vfmtok.sources.listing import Choices, list_sources
from vfmtok.sources.scratch import Scratch

SYNSETS = imagenet.synsets()


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return makers.write_official(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def expected():
    """split -> file name -> label"""
    return {
        "train": {Path(name).name: SYNSETS.index(name.split("/")[0]) for name in makers.train_files()},
        "val": dict(zip(makers.val_files(), map(SYNSETS.index, makers.answers()), strict=True)),
    }


def labels(listing):
    return {s: {Path(e.name).name: e.label for e in entries} for s, entries in listing.splits.items()}


def listed(tmp_path, *sources, **choices):
    with Scratch(tmp_path / "scratch") as scratch:
        return list_sources(list(map(str, sources)), scratch, None, Choices(**choices))


def verified(listing) -> bool:
    return any(note.startswith("ImageNet-1k, labels verified") for note in listing.notes)


def test_the_official_tars_have_torchvisions_labels(official, expected, tmp_path, monkeypatch, capsys):
    datasets = pytest.importorskip("torchvision.datasets")
    root = tmp_path / "torchvision"
    shutil.copytree(official, root)
    meta = {name: (file, None) for name, (file, _) in datasets.imagenet.ARCHIVE_META.items()}  # no MD5 of miniatures
    monkeypatch.setattr(datasets.imagenet, "ARCHIVE_META", meta)
    theirs = {
        split: {Path(path).name: label for path, label in datasets.ImageNet(root, split).samples}
        for split in ("train", "val")
    }
    assert theirs == expected
    tars = [official / f"ILSVRC2012_img_{split}.tar" for split in ("train", "val")]
    assert main(["prepare", *map(str, tars), str(tmp_path / "out"), "--workers", "1"]) == 0  # the devkit lies beside
    assert "ImageNet-1k, labels verified" in capsys.readouterr().out
    for split, images in theirs.items():
        dataset = RecordDataset(tmp_path / f"out/{split}_lmdb")
        assert dataset.classes == list(SYNSETS)
        assert {Path(r.name).name: r.label for r in map(dataset.__getitem__, range(len(dataset)))} == images


def test_the_devkit_may_be_anywhere_and_unpacked(official, expected, tmp_path):
    assert labels(listed(tmp_path, official)) == expected  # the folder of the three
    apart = tmp_path / "apart"
    apart.mkdir()
    for split in ("train", "val"):
        (apart / f"ILSVRC2012_img_{split}.tar").symlink_to(official / f"ILSVRC2012_img_{split}.tar")
    tars = sorted(apart.iterdir())
    kit = official / "ILSVRC2012_devkit_t12.tar.gz"
    unpacked = write_tree(tmp_path / "kit", makers.devkit_files()) / "ILSVRC2012_devkit_t12"
    for listing in (listed(tmp_path, *tars, kit), listed(tmp_path, *tars, unpacked)):
        assert labels(listing) == expected and verified(listing)
    with pytest.raises(DataError, match=r"ILSVRC2012_img_val.tar: 2,000 images .* without their labels.*devkit"):
        listed(tmp_path, *tars)
    one = listed(tmp_path, tars[1], classes_from="none")
    assert len(one) == 2000 and one.classes == ["ILSVRC2012_img_val"]


def test_a_devkit_that_is_none(official, tmp_path):
    tars = sorted(official.glob("ILSVRC2012_img_*.tar"))
    files = makers.devkit_files()
    truth, meta = (next(name for name in files if name.endswith(end)) for end in ("truth.txt", "meta.mat"))
    for change, message in (
        ({truth: None}, "validation_ground_truth.txt is not in it"),
        ({meta: None}, "data/meta.mat is not in it"),
        ({meta: b"nothing"}, "meta.mat in .* is not what a devkit holds"),
        ({truth: b"1\n2000\n"}, "names class 2000"),
        ({truth: b"one\n"}, "is damaged"),
        ({truth: b"1\n2\n"}, "has 2 labels for 2,000 images"),
    ):
        held = {name: content for name, content in {**files, **change}.items() if content is not None}
        kit = makers.write_tar(tmp_path / "kit.tar.gz", held, "w:gz")
        with pytest.raises(DataError, match=message) as caught:
            listed(tmp_path, *tars, classes_from=str(kit))
        assert "\n" not in str(caught.value)
    listing = listed(tmp_path, *tars, classes_from=str(write_tree(tmp_path / "kit", files)))
    assert verified(listing)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The validation's labels in the files that others publish."""
    folder, names = tmp_path_factory.mktemp("published"), list(makers.val_files())
    pairs = list(zip(names, makers.answers(), strict=True))[::-1]
    boxes = "".join(f"{name[:-5]},{synset} 1 2 3 4 {synset} 5 6 7 8 \n" for name, synset in pairs)
    boxes = f"ImageId,PredictionString\n{boxes}"
    (folder / "LOC_val_solution.csv").write_text(boxes)
    (folder / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(makers.answers()) + "\n")
    (folder / "val.txt").write_text(
        "".join(f"{name} {SYNSETS.index(synset)}\n" for name, synset in zip(names, makers.answers(), strict=True))
    )
    truth = makers.devkit_files()["ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_bytes(truth)
    return folder


@pytest.mark.parametrize("file", ["LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "val.txt"])
def test_published_lists_of_validation_labels(published, expected, tmp_path, file):
    train = write_tree(tmp_path / "s/train", makers.train_files())
    val = write_tree(tmp_path / "s/val", makers.val_files())
    for sources, choices in (
        ([train, val, published / file], {}),
        ([train.parent, published / file], {}),
    ):
        listing = listed(tmp_path, *sources, **choices)
        assert labels(listing) == expected and verified(listing)
    with pytest.raises(DataError, match=r"only the devkit's meta\.mat tells"):
        listed(tmp_path, train, val, published / "ILSVRC2012_validation_ground_truth.txt")


def test_class_folders_with_a_flat_test(official, published, expected, tmp_path):
    flat = makers.val_files()
    folders = {f"val/{synset}/{name}": flat[name] for name, synset in zip(flat, makers.answers(), strict=True)}
    test = {f"test/ILSVRC2012_test_{n:08d}.JPEG": makers.tiny(n) for n in range(3)}
    files = {f"train/{name}": content for name, content in makers.train_files().items()} | folders | test
    listing = listed(tmp_path, write_tree(tmp_path / "imagenet", files))
    assert labels(listing) == expected and listing.left_out == 3 and verified(listing)
    for file in (official / "ILSVRC2012_devkit_t12.tar.gz", published / "LOC_val_solution.csv"):  # they do no harm
        assert listed(tmp_path, tmp_path / "imagenet", file).fingerprint == listing.fingerprint
    with pytest.raises(DataError, match="has 3 labels for 4,000 images"):
        (tmp_path / "labels.txt").write_text("a\nb\na\n")
        listed(tmp_path, tmp_path / "imagenet", classes_from=str(tmp_path / "labels.txt"))


def test_kaggles_folders(published, expected, tmp_path):
    base = "ILSVRC/Data/CLS-LOC"
    files = {f"{base}/train/{name}": content for name, content in makers.train_files().items()}
    files |= {f"{base}/val/{name}": content for name, content in makers.val_files().items()}
    files |= {f"{base}/test/ILSVRC2012_test_00000001.JPEG": makers.tiny(1)}
    files |= {"ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml": b"<x/>", "LOC_synset_mapping.txt": b"n0 x"}
    files |= {"LOC_train_solution.csv": b"ImageId,PredictionString\n", "LOC_val_solution.csv": b""}
    root = write_tree(tmp_path / "kaggle", files)
    shutil.copy(published / "LOC_val_solution.csv", root)
    listing = listed(tmp_path, root)
    assert labels(listing) == expected and listing.left_out == 1 and verified(listing)
    inner = listed(tmp_path, root / base, root / "LOC_val_solution.csv")
    assert labels(inner) == expected and inner.fingerprint == listing.fingerprint
    with pytest.raises(DataError, match="without their labels"):
        listed(tmp_path, root / base)


def shards(folder: Path, shift: int = 0) -> Path:
    """As timm/imagenet-1k-wds: two shards of training, one of validation, whose keys do not say the synset."""
    folder.mkdir()
    items = [
        (name.split("/")[1][:-5], content, SYNSETS.index(name[:9])) for name, content in makers.train_files().items()
    ]
    for number, part in enumerate((items[::2], items[1::2])):
        members = {}
        for key, content, label in part:
            members |= {f"{key}.jpg": content, f"{key}.cls": str(label + shift).encode()}
            members |= {f"{key}.json": json.dumps({"label": label + shift, "filename": f"{key}.JPEG"}).encode()}
        makers.write_tar(folder / f"imagenet1k-train-{number:04d}.tar", members)
    members = {}
    for (name, content), synset in zip(makers.val_files().items(), makers.answers(), strict=True):
        members |= {f"{name[:-5]}.jpg": content, f"{name[:-5]}.cls": str(SYNSETS.index(synset) + shift).encode()}
    makers.write_tar(folder / "imagenet1k-validation-00.tar", members)
    (folder / "README.md").write_text("---")
    (folder / "_info.json").write_text("{}")
    return folder


def test_webdataset_shards(expected, tmp_path):
    expected = {s: {Path(n).with_suffix(".jpg").name: x for n, x in images.items()} for s, images in expected.items()}
    listing = listed(tmp_path, shards(tmp_path / "wds"))
    assert labels(listing) == expected and verified(listing)
    with pytest.raises(DataError, match="labels are not ImageNet's, all shifted by 1"):
        listed(tmp_path, shards(tmp_path / "shifted", 1))


def test_the_hubs_parquet(expected, tmp_path):
    (tmp_path / "data").mkdir()
    rows = {
        "train-00000-of-00001": [(Path(n).name, c, SYNSETS.index(n[:9])) for n, c in makers.train_files().items()],
        "validation-00000-of-00001": [(n, c, expected["val"][n]) for n, c in makers.val_files().items()],
        "test-00000-of-00001": [("ILSVRC2012_test_00000001.JPEG", makers.tiny(1), -1)],
    }
    for name, content in rows.items():
        make_parquet(tmp_path / f"data/{name}.parquet", content, list(imagenet.names()))
    listing = listed(tmp_path, tmp_path / "data")
    assert labels(listing) == expected and listing.left_out == 1 and verified(listing)
    shifted = ["background", *imagenet.names()]
    make_parquet(tmp_path / "x.parquet", [(n, c, x + 1) for n, c, x in rows["train-00000-of-00001"]], shifted)
    with pytest.raises(DataError, match="shifted"):
        listed(tmp_path, tmp_path / "x.parquet")


def test_classes_too_many_or_too_few_do_not_shift_the_others(tmp_path):
    some = {name: content for name, content in makers.train_files().items() if name.endswith("_0.JPEG")}
    folder = write_tree(tmp_path / "s", some | {"mine/1.JPEG": makers.tiny(1)})
    with pytest.raises(DataError, match="1,000 classes and 1 more, such as 'mine'"):
        listed(tmp_path, folder)
    shutil.rmtree(folder / "mine")
    shutil.rmtree(folder / SYNSETS[3])
    with pytest.raises(DataError, match=f"1 of ImageNet's 1,000 classes are missing, such as {SYNSETS[3]}"):
        listed(tmp_path, folder)
    listing = listed(tmp_path, folder, classes_from="imagenet")
    assert verified(listing) and {SYNSETS[e.label] for e in listing.splits["train"]} == set(SYNSETS) - {SYNSETS[3]}
    imagenette = listed(tmp_path, write_tree(tmp_path / "few", dict(list(some.items())[100:110])))
    assert imagenette.classes == list(SYNSETS[100:110]) and not verified(imagenette)
