"""What the README and the pages of docs/ show works as it is written."""

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
NAMES = ("training", "evaluation", "configuration", "faq", "architecture", "studies")  # in the order of their commands
PAGES = {name: (ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in NAMES}
BENCHMARKS = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
TEXT = README + "".join(PAGES.values()) + BENCHMARKS  # docs/data.md has tests/test_data_page.py
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
PYTHON = [code for language, note, code in BLOCKS if language == "python" and "no-run" not in note]
SHELL = "".join(code for language, note, code in BLOCKS if language == "bash" and "no-run" not in note)
COMMANDS = list(dict.fromkeys(SHELL.replace("\\\n", " ").splitlines()))  # a page repeats what another one made

# How a command is tried: by the way these tests are run, or as it is, or with tiny settings.
NOT_TRIED = {
    "pip install -e .",  # scripts/test.sh does it
    "pip install -e '.[train,quickstart]'",
    "scripts/test.sh",  # is running
    "scripts/quickstart.sh",  # tests/test_quickstart.py
    "vfmtok demo quickstart",  # tests/demo
}
TINY = {
    "benchmarks/tokenizer.py": "benchmarks/tokenizer.py --config configs/tiny.yaml --repeat 1",
    "benchmarks/train_step.py": "benchmarks/train_step.py --config configs/tiny.yaml --repeat 1 --no-memory",
    "benchmarks/sampling.py": "benchmarks/sampling.py --tokens 4 --batch 1 --steps 1 --precision fp32",
    "--nproc-per-node 8": "--standalone --nproc-per-node 2",  # on a free port
    # The paper's run: ImageNet and three networks' weights become the sample set and none.
    "configs/vfmtok/tokenizer.yaml --data-path imagenet": "configs/vfmtok/tokenizer.yaml --data-path emoji "
    "--transformer-config-file configs/tiny.yaml --disc-type none --global-batch-size 4 --mixed-precision none "
    "--set optimizer.steps=2 --set loss.perceptual=encoder --set run.compile=false",
    "scripts/torchrun.sh": "torchrun --standalone --nproc-per-node 2",
    "configs/vfmtok/gpt_l.yaml --code-path codes/imagenet": "configs/vfmtok/gpt_l.yaml --code-path codes/train "
    "--global-batch-size 2 --mixed-precision none --set data.vq_ckpt=null --set generator.n_layer=1 "
    "--set generator.dim=64 "
    "--set generator.n_head=4 --set optimizer.steps=2",
    "configs/vfmtok/emoji64_gpt.yaml": "configs/vfmtok/emoji64_gpt.yaml --set optimizer.steps=2 --set pictures.every=2",
    "--views shift": "--views center",  # 18 views take minutes
    "--num-fid-samples 90": "--num-fid-samples 9",
    "vfmtok agreement": "vfmtok agreement --per-class 2",
    "quickstart/generator": "results/emoji64_gpt",
    "quickstart/tokenizer": "results/emoji64",
    "quickstart/data": "emoji",
    "--data imagenet": "--data imagenet --dry-run",  # 50,000 images, and weights from the Hub
    "--ref-batch VIRTUAL_imagenet256_labeled.npz": "--ref-batch VIRTUAL_imagenet256_labeled.npz --dry-run",
    "configs/vfmtok/emoji64.yaml": "configs/vfmtok/emoji64.yaml --set optimizer.steps=6 "
    "--set codebook.continuous_steps=2 --set run.validation_images=16",
    "reconstruct exported/val ": "reconstruct exported/val/flags ",
}
SCRIPTS = ("vq_train.py", "train_c2i.py", "vqgan_test.py", "test_net.py")
# One after the other in one folder, as a reader would.
RUN = ("vfmtok ", "torchrun ", "scripts/torchrun.sh ", *(f"python {script}" for script in SCRIPTS))


def test_the_readme_is_a_guide():
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for claim in re.findall(r"print\(.*\) +# (.+)", code):
        assert claim in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("python benchmarks/")])
def test_benchmarks_run(command):
    for shown, tried in TINY.items():
        command = command.replace(shown, tried)
    done = subprocess.run([sys.executable, *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "bound" in done.stdout or "published path" in done.stdout


@pytest.mark.parametrize("pages", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_commands_run_one_after_the_other(pages, tmp_path):
    """Those of the README; and those of all pages, which continue with what it made."""
    commands = [line for line in COMMANDS if line.startswith(RUN) and line not in NOT_TRIED]
    commands = [line for line in commands if pages or line in README.replace("\\\n", " ")]
    commands.sort(key=lambda line: "quickstart/" in line or "exported" in line)  # with what the others trained
    assert len(commands) > (20 if pages else 9)
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
    made = (
        "codes/train/ids.npy", "codes/val/contact_sheet.png", "results/emoji64/recipe.yaml", "grid.png",
        "inpainted.png", "recons", "reconstructed",
    )  # fmt: skip
    of_pages = ("curves.png", "tokenizer.pt", "gpt.pt", "my-generator/model.safetensors", "results/vfmtok/log.jsonl")
    for file in made + of_pages * pages:
        assert (tmp_path / file).exists(), file


def test_every_command_is_tried():
    others = {line for line in COMMANDS if not line.startswith((*RUN, "python benchmarks/"))}
    assert others <= NOT_TRIED <= set(COMMANDS)


def test_linked_files_and_headings_exist():
    for folder, text in ((ROOT, README), *((ROOT / "docs", text) for text in PAGES.values())):
        for link, heading in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", text):
            assert (folder / link).exists(), link
            if heading:
                titles = re.findall(r"^#+ (.+)$", (folder / link).read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert heading in {title.lower().replace(" ", "-") for title in titles}, heading


def test_published_numbers_are_those_of_the_manifests():
    """Every manifest of VFMTok's own is named, and the row of its model shows its numbers; a page names the others."""
    systems = ("llamagen-", "hita-", "rar-", "vfmae-", "ditdh-", "vfmvae-")
    others = [name for name in manifest_names() if name.startswith(systems)]
    for stem in {name.split("-")[0] for name in others}:
        assert any(f"`{name}`" in PAGES["evaluation"] for name in others if name.startswith(stem))
    for name in set(manifest_names()) - set(others):
        line = next(line for line in README.splitlines() if f"`{name}`" in line or f"reproduce {name} " in line)
        shown = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]
        for number in find_manifest(name).expected:
            if number.name in ("rFID", "rIS", "gFID", "IS"):
                assert {number.value, number.paper or number.value} <= set(shown), (name, number)


def test_configuration_tables_are_true():
    """Every `key=value ...` in the tables is accepted."""
    training, tokenizers = PAGES["configuration"].split("## VFMTok")
    for section, text in zip(("optimizer", "run"), training.split("## Checkpoints"), strict=True):
        overrides = settings(text)
        assert len(overrides) > {"optimizer": 6, "run": 3}[section]
        for together in overrides:
            words = [word if word.startswith("ema.") else f"{section}.{word}" for word in together]
            with_overrides(TokenizerRecipe(), words)
    vfmtoks, hitas, vfmaes = re.split("## Hita|## VFMAE", tokenizers)
    for text, file, least in ((vfmtoks, "vit_transformer", 10), (hitas, "hita_vqgan", 4), (vfmaes, "vfmae/vfmae", 4)):
        overrides = settings(text)
        assert len(overrides) > least
        for together in overrides:
            vfmtok.load_config(ROOT / f"configs/{file}.yaml", [f"tokenizer.{word}" for word in together])
    overrides = settings(PAGES["training"].split("## A generator")[0])
    assert len(overrides) > 4
    with_overrides(TokenizerRecipe(), [word for together in overrides for word in together])


def settings(text: str) -> list[list[str]]:
    """The settings in the tables of a page, those that stand together in one list."""
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    spans = [span.split() for span in re.findall(r"`([^`\n]+=[^`\n]+)`", rows)]
    return [span for span in spans if not span[0].startswith("-") and span != ["run.wandb=PROJECT"]]
