"""ImageNet in miniature: its 1,000 synsets, two images of each in training and validation, in its official files."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from vfmtok.sources.imagenet import synsets

PER_CLASS = 2


def tiny(seed: int) -> bytes:
    """A JPEG of 8x8 pixels of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (seed % 256, seed // 256 % 256, seed * 7 % 256)).save(buffer, "JPEG")
    return buffer.getvalue()


def train_files() -> dict[str, bytes]:
    """class/image -> content."""
    return {
        f"{synset}/{synset}_{number}.JPEG": tiny(2 * label + number)
        for label, synset in enumerate(synsets())
        for number in range(PER_CLASS)
    }


def answers() -> list[str]:
    """The synset of every validation image, in order."""
    return [synsets()[label] for label in np.random.default_rng(5).permutation(np.repeat(np.arange(1000), PER_CLASS))]


def val_files() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{number:08d}.JPEG": tiny(5000 + number) for number in range(1, len(answers()) + 1)}


def write_tar(path: Path | io.BytesIO, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) if isinstance(path, Path) else tarfile.open(fileobj=path, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_train(path: Path) -> Path:
    inner: dict[str, dict[str, bytes]] = {}
    for name, content in train_files().items():
        synset, _, file = name.partition("/")
        inner.setdefault(f"{synset}.tar", {})[file] = content
    return write_tar(path, {name: write_tar(io.BytesIO(), files).getvalue() for name, files in inner.items()})


def devkit_files() -> dict[str, bytes]:
    """The real layout; meta.mat holds the 1,000 synsets in an order of its own, and two above them for 860."""
    import scipy.io

    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    order = np.random.default_rng(6).permutation(1000)
    rows = np.zeros((1002, 1), dtype=[(name, object) for name in fields])
    for row, label in enumerate(order):
        rows[row, 0] = (row + 1, synsets()[label], f"word, {label}", "gloss", 0, np.zeros((0, 0)), 0, 1300)
    for row, name in ((1000, "n00001740"), (1001, "n00001930")):
        rows[row, 0] = (row + 1, name, "entity", "above", 2, np.array([[1, 2]]), 3, 0)
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": rows})
    number_of = {synsets()[label]: row + 1 for row, label in enumerate(order)}
    truth = "".join(f"{number_of[synset]}\n" for synset in answers())
    return {
        "ILSVRC2012_devkit_t12/readme.txt": b"Development kit",
        "ILSVRC2012_devkit_t12/COPYING": b"...",
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        "ILSVRC2012_devkit_t12/evaluation/demo_eval.m": b"%",
    }


def write_official(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_train(folder / "ILSVRC2012_img_train.tar")
    write_tar(folder / "ILSVRC2012_img_val.tar", val_files())
    write_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit_files(), "w:gz")
    return folder
