"""scripts/quickstart.sh, whole, on a few images and with training of a few steps; then again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vfmtok.data.dataset_folder import open_splits

ROOT = Path(__file__).parent.parent
TINY = {
    "TOKENIZER_FLAGS": "--set optimizer.steps=6 --set codebook.continuous_steps=2",
    "GENERATOR_FLAGS": "--set optimizer.steps=4 --set pictures.every=4 --global-batch-size 4",
    "VENV": sys.prefix,
}


def run(*arguments, cwd=ROOT, **environment):
    script = ROOT / "scripts/quickstart.sh"
    environment = {**os.environ, **TINY, **environment}
    return subprocess.run([script, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def photos(sample_set, tmp_path_factory):
    """Class folders of 24 images."""
    folder, records = tmp_path_factory.mktemp("photos"), open_splits(sample_set)["val"]
    of_two_classes = [record for record in map(records.__getitem__, range(len(records))) if record.label in (1, 5)]
    for number, record in enumerate(of_two_classes[::3][:24]):
        place = folder / records.class_name(record.label) / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(record.image)
    return folder


def test_own_images_become_a_page(photos, tmp_path):
    done = run("--data", photos.name, "--out", tmp_path / "out", cwd=photos.parent)  # paths are the caller's
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "out/report.html").read_text()
    assert "Not there yet" not in page and "http" not in re.sub(r"base64,[^']+", "", page)
    assert page.count("data:image/png;base64,") == 8
    for word in ("animals_nature", "people_body", "agreement, no CFG", "agreement, CFG 2", "PSNR", "perplexity"):
        assert word in page, word
    commands = re.findall(r"\$ (.*?)\033\[0m", done.stdout)
    assert [command.split()[1 if command.startswith("python") else 0] for command in commands] == [
        *["vfmtok"] * 2, "vq_train.py", "vqgan_test.py", *["vfmtok"] * 2, "train_c2i.py", *["vfmtok"] * 4,
    ]  # fmt: skip


@pytest.mark.slow
def test_the_same_command_again_changes_nothing(photos, tmp_path):
    def weights():
        return {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}

    first, kept = run("--data", photos, "--out", tmp_path / "out"), weights()
    again = run("--data", photos, "--out", tmp_path / "out")
    assert first.returncode == again.returncode == 0, again.stdout + again.stderr
    assert kept and kept == weights()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "/no/such/folder"), "no images at /no/such/folder"),
        (("--out",), "--out needs a value"),
        (("--preset", "tpu"), "--preset is cpu or gpu, not tpu"),
        (("--encoder", "clip"), "--encoder is package or dinov2, not clip"),
        (("--fast",), "unknown option --fast"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(f"scripts/quickstart.sh: error: {re.escape(message)}.*\n", done.stderr)
