"""What the README shows works as it is written."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
PYTHON = [code for language, note, code in BLOCKS if language == "python" and "no-run" not in note]
COMMANDS = [line for language, _, code in BLOCKS if language == "bash" for line in code.splitlines()]

# How a command of the README is tried: by itself with tiny settings, or by the way these tests are run.
TRIED_AS = {
    "git clone <this repository> && cd vfmtok": None,
    "pip install -e .": None,  # scripts/test.sh does it
    "scripts/test.sh": None,  # is running
    "python benchmarks/tokenizer.py": "benchmarks/tokenizer.py --config configs/tiny.yaml --repeat 1",
}


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for claim in re.findall(r"print\(.*?\) +# (.+)", code):
        assert claim in done.stdout


def test_every_command_is_known():
    assert set(COMMANDS) == set(TRIED_AS)


@pytest.mark.parametrize("command", [tried for tried in TRIED_AS.values() if tried])
def test_commands_run(command):
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "pixel decoder" in done.stdout
    assert "ratio" in done.stdout


def test_linked_files_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_configuration_table_is_true(tiny_config):
    """Every ``key=value`` in the table is accepted."""
    import vfmtok

    table = README.split("## Configure")[1].split("## Find your way")[0]
    overrides = [word for span in re.findall(r"`([^`\n]+=[^`\n]+)`", table) for word in span.split()]
    overrides = [override for override in overrides if override != "key=value"]
    assert len(overrides) > 10
    for override in overrides:
        vfmtok.load_config(ROOT / "configs/vit_transformer.yaml", [override])
