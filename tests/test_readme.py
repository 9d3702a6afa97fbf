"""What the README shows works as it is written."""

import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import vfmtok

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
PYTHON = [code for language, note, code in BLOCKS if language == "python" and "no-run" not in note]
COMMANDS = [line for language, _, code in BLOCKS if language == "bash" for line in code.splitlines()]

# How a command of the README is tried: by the way these tests are run, or as it is, or with tiny settings.
NOT_TRIED = {
    "git clone <this repository> && cd vfmtok",
    "pip install -e .",  # scripts/test.sh does it
    "scripts/test.sh",  # is running
}
TINY = {
    "configs/vit_transformer.yaml": str(ROOT / "configs/tiny.yaml"),
    "benchmarks/tokenizer.py": "benchmarks/tokenizer.py --config configs/tiny.yaml --repeat 1",
}


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for claim in re.findall(r"print\(.*?\) +# (.+)", code):
        assert claim in done.stdout


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("python ")])
def test_scripts_run(command):
    for shown, tried in TINY.items():
        command = command.replace(shown, tried)
    done = subprocess.run([sys.executable, *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "of bound" in done.stdout or "published path" in done.stdout


def test_vfmtok_commands_run_one_after_the_other(tmp_path, tiny_tokenizer):
    commands = [line for line in COMMANDS if line.startswith("vfmtok ")]
    assert len(commands) > 5
    torch.save(vfmtok.to_released(tiny_tokenizer()), tmp_path / "tokenizer.pt")
    for command in commands:
        for shown, tried in TINY.items():
            command = command.replace(shown, tried)
        arguments = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    for made in ("emoji.png", "pictures", "mine/val_lmdb/data.mdb", "codes/ids.npy", "codes/contact_sheet.png"):
        assert (tmp_path / made).exists(), made


def test_every_command_is_tried():
    assert {line for line in COMMANDS if not line.startswith(("python ", "vfmtok "))} == NOT_TRIED


def test_linked_files_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_configuration_table_is_true(tiny_config):
    """Every ``key=value`` in the table is accepted."""
    table = README.split("## Configure")[1].split("## Find your way")[0]
    overrides = [word for span in re.findall(r"`([^`\n]+=[^`\n]+)`", table) for word in span.split()]
    overrides = [override for override in overrides if override != "key=value"]
    assert len(overrides) > 10
    for override in overrides:
        vfmtok.load_config(ROOT / "configs/vit_transformer.yaml", [override])
