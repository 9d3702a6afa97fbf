"""What was prepared by earlier versions is recognised: the listing's fingerprints of plainly built sources stay."""

import io
import json
import tarfile
import zipfile

import pytest

from vfmtok.sources.listing import list_sources
from vfmtok.sources.scratch import Scratch

FILES = {
    f"{name}/{number:02d}.{suffix}": f"{name}{number}".encode() * (number + 1)
    for name in ("ant", "bee", "wren")
    for number in range(5)
    for suffix in [("jpg", "png", "JPEG", "webp", "tif")[number]]
}
SPLIT = {f"{'validation' if n.endswith('02.JPEG') else 'train'}/{n}": c for n, c in FILES.items()}
SPLIT["test/ant/99.png"] = b"left out"


def _tree(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return [folder]


def _zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return [path]


def _tar(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return [path]


def _class_tars(folder):
    inner = {}
    for name in ("ant", "bee"):
        members = {n.split("/")[1]: c for n, c in FILES.items() if n.startswith(name)}
        inner[f"{name}.tar"] = _tar(folder / "inner", members)[0].read_bytes()
    return _tar(folder / "outer.tar", inner)


def _shards(folder, label):
    for number, split in enumerate(("train-0", "train-1", "val-0", "test-0")):
        members = {}
        for name, content in list(FILES.items())[number : number + 6]:
            key, _, suffix = name.replace("/", "_").partition(".")
            members |= {f"{key}.{suffix}": content, **label(key)}
        _tar(folder / f"{split}.tar", members)
    return [folder]


SOURCES = {
    "class folders": lambda folder: _tree(folder / "s", FILES),
    "one class folder and notes": lambda folder: _tree(folder / "s", {"ant/1.png": b"1", "notes.txt": b"x"}),
    "flat folder": lambda folder: _tree(folder / "s", {n.replace("/", "-"): c for n, c in FILES.items()}),
    "splits": lambda folder: _tree(folder / "s", SPLIT),
    "flat splits": lambda folder: _tree(folder / "s", {"train/1.png": b"1", "val/2.png": b"22"}),
    "deep folders": lambda folder: _tree(folder / "s", {f"{n[:3]}/x/{n}": c for n, c in FILES.items()}),
    "zip": lambda folder: _zip(folder / "s.zip", FILES),
    "wrapped zip": lambda folder: _zip(folder / "s.zip", {f"w/{n}": c for n, c in FILES.items()}),
    "zip of one split": lambda folder: _zip(folder / "s.zip", {f"train/{n}": c for n, c in FILES.items()}),
    "zip with splits": lambda folder: _zip(folder / "s.zip", SPLIT),
    "tar": lambda folder: _tar(folder / "s.tar", FILES),
    "tar.gz": lambda folder: _tar(folder / "s.tar.gz", FILES, "w:gz"),
    "tar of class tars": _class_tars,
    "two sources": lambda folder: _tree(folder / "s", FILES) + _zip(folder / "more.zip", FILES),
    "flat sources": lambda folder: [
        path for name in ("zebra", "ant") for path in _tree(folder / name, {"1.png": b"1", "2.png": b"22"})
    ],
    "split sources": lambda folder: [
        path for name in ("train", "val") for path in _tree(folder / name, {"ant/1.png": b"1", "bee/2.png": b"22"})
    ],
    "shards with .cls": lambda folder: _shards(folder / "s", lambda key: {f"{key}.cls": str(len(key)).encode()}),
    "shards with .json": lambda folder: _shards(
        folder / "s", lambda key: {f"{key}.json": json.dumps({"label": key[:3], "url": "x"}).encode()}
    ),
    "shards with numbers in .json": lambda folder: _shards(
        folder / "s", lambda key: {f"{key}.json": json.dumps({"label": 7, "class_name": "seven"}).encode()}
    ),
    "folder of class tars": lambda folder: [
        path.parent for name in ("ant", "bee") for path in _tar(folder / f"s/{name}.tar", {"1.png": b"1"})
    ][:1],
    "sample": lambda folder: ["sample"],
}  # fmt: skip
FINGERPRINTS = {
    "class folders": ["4f5d61024a9dee9a", "e462956c1a4ce6e1"],
    "one class folder and notes": ["28dfae5f783f7aa3"],
    "flat folder": ["de0975282154c130"],
    "splits": ["8d2330a73a8d96c5"],
    "flat splits": ["6e151cb409e7f9c4"],
    "deep folders": ["ce2ef41d30f3ea11"],
    "zip": ["5138693c9ebf87a6", "98ccd6f8a8c83b09"],
    "wrapped zip": ["5138693c9ebf87a6"],
    "zip of one split": ["5138693c9ebf87a6"],
    "zip with splits": ["c2421e466d31a70b"],
    "tar": ["4f5d61024a9dee9a"],
    "tar.gz": ["4f5d61024a9dee9a"],
    "tar of class tars": ["aded7fa334cdb951"],
    "two sources": ["a1c58388a6afc4a3"],
    "flat sources": ["553132000c8fe199"],
    "split sources": ["87003048664d821f"],
    "shards with .cls": ["68f07949743ad206"],
    "shards with .json": ["2869cf9addee8d1f"],
    "shards with numbers in .json": ["a877e0b91d25d5c1"],
    "folder of class tars": ["f24f8c7e88526c58"],
    "sample": ["80a149be6b64d69c"],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_fingerprints_stay(kind, tmp_path):
    with Scratch(tmp_path / "scratch") as scratch:
        sources = [str(path) for path in SOURCES[kind](tmp_path)]
        found = [list_sources(sources, scratch).fingerprint[:16]]
        if kind in ("class folders", "zip"):
            found.append(list_sources(sources, scratch, 0.3).fingerprint[:16])
    assert found == FINGERPRINTS[kind]
