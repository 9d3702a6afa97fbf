"""The shell scripts that are left, and the recipes that took the place of those of the published runs."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import small_caches
import yaml

from vfmtok.commands import generator_flags, tokenizer_flags
from vfmtok.config import config_from_dict
from vfmtok.config import load_config as load_recipe
from vfmtok.generators.gpt.config import gpt_config
from vfmtok.pretrained.published import HITA, PUBLISHED, VFMTOK
from vfmtok.tokenizers import AnyTokenizerConfig, load_config
from vfmtok.training.generator_recipe import GeneratorRecipe

ROOT = Path(__file__).parents[1]
SCRIPTS, RECIPES = ROOT / "scripts", ROOT / "configs/vfmtok"
SIZES = {
    "gpt_b": "GPT-B",
    "gpt_l": "GPT-L",
    "gpt_xl": "GPT-XL",
    "gpt_xxl": "GPT-XXL",
    "gpt_2b": "GPT-2B",
    "gpt_3b": "GPT-3B",
}


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_it_parses_and_may_be_started(script):
    assert subprocess.run(["bash", "-n", SCRIPTS / script]).returncode == 0
    assert os.access(SCRIPTS / script, os.X_OK)


@pytest.fixture
def command(tmp_path):
    """``command("vq_train.py", ...)`` -> the Python script and arguments that torchrun is given."""
    recorder = tmp_path / "python"
    recorder.write_text("#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done\n")  # instead of the interpreter
    recorder.chmod(0o755)

    def run(*arguments: str) -> tuple[str, list[str]]:
        environment = {**os.environ, "PYTHON": str(recorder), "PROC_PER_NODE": "8"}
        script = [SCRIPTS / "torchrun.sh", *arguments]
        done = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        words = done.stdout.splitlines()
        assert (
            words[:3] == ["-m", "torch.distributed.run", "--nnodes"]
            and words[words.index("--nproc-per-node") + 1] == "8"
        )
        place = next(index for index, word in enumerate(words) if word.endswith(".py"))
        assert Path(words[place]).is_file()
        return Path(words[place]).name, words[place + 1 :]

    return run


def test_the_tokenizer_s_training(command):
    words = ("--recipe", str(RECIPES / "tokenizer.yaml"), "--data-path", "images")
    script, arguments = command("vq_train.py", *words, "--epochs", "7")
    assert script == "vq_train.py"
    recipe = tokenizer_flags.tokenizer_recipe(tokenizer_flags.tokenizer_parser().parse_args(arguments))
    assert recipe.optimizer.epochs == 7  # what is given last holds
    published = tokenizer_flags.tokenizer_recipe(tokenizer_flags.tokenizer_parser().parse_args(list(words)))
    assert published.tokenizer == load_config(ROOT / "configs/vit_transformer.yaml", ["encoder.weights=auto"])
    assert published.optimizer.lr == 1e-4 and published.run.precision == "bf16" and published.run.global_batch == 256
    assert published.adversarial.discriminator == "dinogan" and published.ema.enabled
    assert published.optimizer.epochs == 50


@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_generator_s_training(command, name, tmp_path):
    words = ("--recipe", str(RECIPES / f"{name}.yaml"), "--code-path", str(tmp_path / "codes"))
    script, arguments = command("train_c2i.py", *words)
    assert script == "train_c2i.py"
    args = generator_flags.generator_parser().parse_args(arguments)
    epochs = {path: published.file.rpartition("-")[2] for path, published in PUBLISHED[VFMTOK].parts.items()}
    small_caches.write_cache(tmp_path / "codes")
    recipe = generator_flags.generator_recipe(args)
    assert f"{recipe.optimizer.epochs:g}e.pt" == epochs[SIZES[name]]
    assert recipe.optimizer.lr == 1e-4 and recipe.optimizer.lr_batch == 256 and recipe.ema.enabled
    assert (recipe.parallel == "fsdp") == (name in ("gpt_xxl", "gpt_2b", "gpt_3b"))
    assert recipe.data.vq_ckpt == VFMTOK and recipe.run.results_dir == f"results/{SIZES[name]}"
    # The size by its name, without a recipe, is the same model, trained as long; its codes are those of the cache.
    by_name = generator_flags.generator_parser().parse_args(["--gpt-model", SIZES[name], *words[2:]])
    by_name = generator_flags.generator_recipe(by_name)
    assert (by_name.generator, by_name.optimizer) == (recipe.generator, recipe.optimizer)
    assert (recipe.generator.vocab_size, recipe.generator.num_tokens, recipe.generator.num_classes) == (32, 16, 3)


@pytest.mark.parametrize(("name", "model"), [("vanilla", "hita_vqgan"), ("ultra", "hita_vqgan_ultra")])
def test_hita_s_trainings(name, model):
    """Recipes of the tokenizers are the published flags on the published model files; those of the GPTs, the sizes."""

    def recipe(*words: str):
        return tokenizer_flags.tokenizer_recipe(tokenizer_flags.tokenizer_parser().parse_args(words))

    published = "--image-size 336 --codebook-embed-dim 8 --z-channels 512 --global-batch-size 256 --epochs 50 --lr 1e-4"
    published += " --ema --mixed-precision bf16 --data-path images --set tokenizer.encoder.weights=auto --disc-type "
    published += "patchgan" if name == "vanilla" else "dinogan --enable-vfm-recon"
    files = ROOT / f"configs/{model}.yaml", ROOT / f"configs/hita/tokenizer_{name}.yaml"
    by_flags = recipe("--transformer-config-file", str(files[0]), *published.split())
    by_recipe = recipe("--recipe", str(files[1]), "--data-path", "images")
    run = replace(by_flags.run, results_dir=by_recipe.run.results_dir)
    assert by_recipe == replace(by_flags, run=run)


@pytest.mark.parametrize("name", sorted(SIZES.keys() - {"gpt_3b"}))
def test_hita_s_generators(name):
    recipe = load_recipe(ROOT / f"configs/hita/{name}.yaml", kind=GeneratorRecipe)
    config = gpt_config(SIZES[name], num_tokens=441, num_holistic=128)
    assert recipe.generator == config and recipe.data.vq_ckpt == f"{HITA}:ultra/tokenizer"
    longest = max(
        int(part.rpartition("-")[2][:-1]) for part in PUBLISHED[HITA].parts if f"ultra/{SIZES[name]}-" in part
    )
    assert recipe.optimizer.epochs == longest
    small = load_recipe(ROOT / f"configs/vfmtok/{name}.yaml", kind=GeneratorRecipe)
    assert recipe.optimizer == replace(small.optimizer, epochs=recipe.optimizer.epochs)


def test_every_model_of_a_recipe_says_its_kind():
    """A file that names no kind is taken for a VFMTok, or a GPT: only VFMTok's own may leave it out."""
    for path in (ROOT / "configs").glob("*/*.yaml"):
        if path.parent.name == "studies":
            continue
        tree = yaml.safe_load(path.read_text())
        models = [tree[name] for name in ("tokenizer", "generator") if name in tree] or [tree]  # a tokenizer alone
        assert len(models) == 1, path
        if path.parent != RECIPES:
            assert "kind" in models[0], path
        if "generator" not in tree:
            assert config_from_dict(models[0], AnyTokenizerConfig).image_size > 0


def test_without_arguments_it_tells_its_usage():
    done = subprocess.run([SCRIPTS / "torchrun.sh"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and done.stderr.count("\n") == 1


def test_torchrun_starts_processes(tmp_path):
    """Two processes of a script, on one machine, with its arguments and exit code."""
    (tmp_path / "script.py").write_text(
        "import sys\nfrom vfmtok import distributed\nwith distributed.program('script') as world:\n"
        "    print(f'<{world.rank} of {world.size}: {sys.argv[1:]}>', flush=True)\n"
        "    distributed.barrier()  # torchrun ends the others when one fails\n"
        "    sys.exit(3 if world.rank else 0)\n"
    )
    command = [str(ROOT / "scripts/torchrun.sh"), str(tmp_path / "script.py"), "--lr", "a b"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PROC_PER_NODE": "2", "MASTER_PORT": port}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert "<0 of 2: ['--lr', 'a b']>" in done.stdout and "<1 of 2: ['--lr', 'a b']>" in done.stdout
    assert done.returncode != 0
    missing = subprocess.run([command[0], "nowhere.py"], capture_output=True, text=True, env=environment, timeout=60)
    assert missing.returncode == 2 and "no script" in missing.stderr and missing.stderr.count("\n") == 1
