"""Every command and flag that docs/data.md shows works as it is written."""

import json
import re
import shlex
import shutil
from pathlib import Path

import imagenet_makers
import pytest
from image_makers import encoded, write_tree
from test_listing import as_shard, make_tar, make_zip

from vfmtok.cli import main
from vfmtok.commands import codes, decode, export_codes, generator_flags, import_codes, tokenizer_flags
from vfmtok.commands.parser import OneLineParser
from vfmtok.commands.prepare import add_arguments
from vfmtok.data.records import RecordDataset

PAGE = (Path(__file__).parent.parent / "docs/data.md").read_text(encoding="utf-8")
COMMANDS = "".join(re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)).splitlines()
IMAGENET = re.findall(r"\| `(vfmtok prepare [^`]+)` \|", PAGE)


@pytest.fixture
def place(tmp_path):
    """What the page's commands name."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    photos = {f"{name}/{i}.png": encoded(i, (64, 64), "PNG") for name in ("cat", "dog") for i in range(12)}
    write_tree(tmp_path / "photos", photos)
    make_zip(tmp_path / "more.zip", photos)
    for number in range(2):
        (tmp_path / "shards").mkdir(exist_ok=True)
        make_tar(tmp_path / f"shards/train-{number:03d}.tar", as_shard(photos, lambda c: ("cls", c.encode())))
    (tmp_path / "cifar").mkdir()
    for split in ("train", "test"):
        names = {name: {"names": ["a", "b"], "_type": "ClassLabel"} for name in ("fine_label", "coarse_label")}
        metadata = {"huggingface": json.dumps({"info": {"features": {"img": {"_type": "Image"}, **names}}})}
        columns = {"img": [{"bytes": c, "path": None} for c in photos.values()]}
        columns |= {name: [0, 1] * 12 for name in names}
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        parquet.write_table(table, tmp_path / f"cifar/{split}-00000-of-00001.parquet")
    write_tree(tmp_path / "flat", {f"{i}.png": encoded(i, (64, 64)) for i in range(4)})
    (tmp_path / "labels.csv").write_text("file_name,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    return tmp_path


def run(command):
    program, *arguments = shlex.split(command)
    assert program == "vfmtok" and main(arguments) == 0, command


def test_commands_run_one_after_the_other(place, monkeypatch, inception_file):
    monkeypatch.chdir(place)
    assert len(COMMANDS) > 6
    for command in COMMANDS:
        run(command + (f" --inception {inception_file}" if "measure" in command else ""))
    for made in ("data/val_lmdb", "from-shards/train_lmdb", "cifar-data/val_lmdb", "labelled/train_lmdb"):
        assert len(RecordDataset(place / made).classes) == 2
    assert len(list((place / "back").rglob("*.png"))) == 48


@pytest.fixture(scope="module")
def imagenets(tmp_path_factory):
    """ImageNet's tars and Kaggle's folder in miniature."""
    folder = imagenet_makers.write_official(tmp_path_factory.mktemp("imagenet"))
    root, answers = folder / "imagenet-object-localization-challenge", imagenet_makers.answers()
    base = "ILSVRC/Data/CLS-LOC"
    write_tree(root, {f"{base}/train/{name}": content for name, content in imagenet_makers.train_files().items()})
    write_tree(root, {f"{base}/val/{name}": content for name, content in imagenet_makers.val_files().items()})
    rows = "".join(f"{name[:-5]},{x} 1 2 3 4\n" for name, x in zip(imagenet_makers.val_files(), answers, strict=True))
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    (folder / "FOLDER").symlink_to(root)
    return folder


@pytest.mark.parametrize("command", list(dict.fromkeys(IMAGENET)))
def test_commands_for_imagenet(imagenets, monkeypatch, capsys, command):
    monkeypatch.chdir(imagenets)
    assert len(set(IMAGENET)) == 3
    run(f"{command} --workers 1")
    assert "ImageNet-1k, labels verified" in capsys.readouterr().out
    shutil.rmtree("imagenet")


def test_flags_of_the_page_exist():
    parser = OneLineParser()
    add_arguments(parser)
    training = {
        flag
        for table in (tokenizer_flags.TOKENIZER_FLAGS, tokenizer_flags.MODEL_FLAGS, generator_flags.GENERATOR_FLAGS)
        for flag, *_ in table
    }
    for command in (codes, import_codes, export_codes, decode):
        other = OneLineParser()
        command.add_arguments(other)
        training |= set(other._option_string_actions)
    flags = set(re.findall(r"`(--[a-z-]+)", PAGE)) - {"--ref-batch"}
    assert len(flags) > 10 and flags <= set(parser._option_string_actions) | training
