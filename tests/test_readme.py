"""What the README and docs/architecture.md show works as it is written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import vfmtok
from vfmtok.config import with_overrides
from vfmtok.pretrained.manifest import find_manifest, manifest_names
from vfmtok.training.recipe import TokenizerRecipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", README + ARCHITECTURE, flags=re.DOTALL | re.MULTILINE)
PYTHON = [code for language, note, code in BLOCKS if language == "python" and "no-run" not in note]
SHELL = "".join(code for language, note, code in BLOCKS if language == "bash" and "no-run" not in note)
COMMANDS = SHELL.replace("\\\n", " ").splitlines()

# How a command of the README is tried: by the way these tests are run, or as it is, or with tiny settings.
NOT_TRIED = {
    "pip install -e .",  # scripts/test.sh does it
    "pip install -e '.[train,quickstart]'",
    "scripts/test.sh",  # is running
    "scripts/quickstart.sh",  # tests/test_quickstart.py
    "scripts/train_tokenizer.sh --data-path imagenet",  # tests/test_scripts.py, and so the next
    "scripts/train_gpt_l.sh --code-path codes/imagenet",
    "vfmtok demo --gpt quickstart/generator --vq-ckpt quickstart/tokenizer",  # tests/demo
}
TINY = {
    "benchmarks/tokenizer.py": "benchmarks/tokenizer.py --config configs/tiny.yaml --repeat 1",
    "benchmarks/train_step.py": "benchmarks/train_step.py --config configs/tiny.yaml --repeat 1 --no-memory",
    # The paper's run: ImageNet, 8 GPUs and three networks' weights become the sample set, 2 processes and none.
    "--nproc-per-node 8": "--standalone --nproc-per-node 2",  # on a free port
    "--data-path imagenet": "--data-path emoji --disc-type none --global-batch-size 4 --set optimizer.steps=2 "
    "--set loss.perceptual=encoder",
    "configs/vit_transformer.yaml --set tokenizer.encoder.weights=auto": "configs/tiny.yaml",
    "benchmarks/sampling.py": "benchmarks/sampling.py --tokens 4 --batch 1 --steps 1 --precision fp32",
    "scripts/torchrun.sh": "torchrun --standalone --nproc-per-node 2",
    "--gpt-model GPT-L --code-path codes/imagenet --mixed-precision bf16": "--code-path codes/train "
    "--global-batch-size 2 "
    "--set generator.n_layer=1 --set generator.dim=64 --set generator.n_head=4 --set optimizer.steps=2",
    "configs/vfmtok/emoji64_gpt.yaml": "configs/vfmtok/emoji64_gpt.yaml --set optimizer.steps=2 --set pictures.every=2",
    "--views shift": "--views center",  # 18 views take minutes
    "--num-fid-samples 90": "--num-fid-samples 9",
    "vfmtok agreement": "vfmtok agreement --per-class 2",
    "quickstart/data": "emoji",
    "quickstart/generator": "results/emoji64_gpt",
    "quickstart/tokenizer": "results/emoji64",
    "--data imagenet": "--data imagenet --dry-run",  # 50,000 images, and weights from the Hub
    "--ref-batch VIRTUAL_imagenet256_labeled.npz": "--ref-batch VIRTUAL_imagenet256_labeled.npz --dry-run",
    "configs/vfmtok/emoji64.yaml": "configs/vfmtok/emoji64.yaml --set optimizer.steps=6 "
    "--set codebook.continuous_steps=2",
}
SCRIPTS = ("vq_train.py", "train_c2i.py", "vqgan_test.py", "test_net.py")
# One after the other in one folder, as a reader would.
RUN = ("vfmtok ", "torchrun ", "scripts/torchrun.sh ", *(f"python {script}" for script in SCRIPTS))


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for claim in re.findall(r"print\(.*?\) +# (.+)", code):
        assert claim in done.stdout


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("python benchmarks/")])
def test_scripts_run(command):
    for shown, tried in TINY.items():
        command = command.replace(shown, tried)
    done = subprocess.run([sys.executable, *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "bound" in done.stdout or "published path" in done.stdout


def test_commands_run_one_after_the_other(tmp_path):
    commands = [line for line in COMMANDS if line.startswith(RUN) and line not in NOT_TRIED]
    commands.sort(key=lambda line: "quickstart/" in line)  # with what the others trained
    assert len(commands) > 20
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for script in SCRIPTS:
        (tmp_path / script).symlink_to(ROOT / script)
    for command in commands:
        for shown, tried in TINY.items():
            command = command.replace(shown, tried)
        program, *arguments = shlex.split(command)
        start = {"vfmtok": ["-m", "vfmtok"], "torchrun": ["-m", "torch.distributed.run"], "python": []}[program]
        arguments = [sys.executable, *start, *arguments]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    made = ["emoji.png", "pictures", "mine/val_lmdb/data.mdb", "codes/train/ids.npy", "codes/val/contact_sheet.png"]
    made += [
        "results/emoji64/recipe.yaml",
        "curves.png",
        "tokenizer.pt",
        "results/vfmtok/log.jsonl",
        "grid.png",
        "recons",
    ]
    for file in made:
        assert (tmp_path / file).exists(), file


def test_every_command_is_tried():
    others = {line for line in COMMANDS if not line.startswith((*RUN, "python benchmarks/"))}
    assert others <= NOT_TRIED <= set(COMMANDS)


def test_linked_files_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link


def test_configuration_table_is_true(tiny_config):
    """Every `key=value ...` in the tables is accepted."""
    overrides = settings(README.split("## Configure")[1].split("## Swap a part")[0])
    assert len(overrides) > 10
    for together in overrides:
        vfmtok.load_config(ROOT / "configs/vit_transformer.yaml", together)
    overrides = settings(README.split("## Train a tokenizer")[1].split("## Evaluate")[0])
    assert len(overrides) > 5
    with_overrides(TokenizerRecipe(), [word for together in overrides for word in together])


def settings(text: str) -> list[list[str]]:
    spans = [span.split() for span in re.findall(r"`([^`\n]+=[^`\n]+)`", text)]
    return [span for span in spans if span != ["key=value"] and not span[0].startswith(("-", "scripts", "overrides"))]


def test_published_numbers_are_those_of_the_manifests():
    """Every manifest has its cell, and its row shows its numbers."""
    rows = {re.findall(r"`(?:vfmtok reproduce )?([a-z0-9-]+)", line)[-1]: line for line in README.splitlines()
            if re.match(r"\| (VFMTok|GPT-)", line)}  # fmt: skip
    assert sorted(rows) == manifest_names()
    for name, row in rows.items():
        for number in find_manifest(name).expected:
            assert f"| {number.value:g}" in row, (name, number)
