"""The shell scripts of the published runs: they parse, and what they start takes their arguments."""

import os
import subprocess
from pathlib import Path

import pytest
import small_caches

from vfmtok.commands import evaluation_flags
from vfmtok.commands import generator_flags as gpt_flags
from vfmtok.commands import tokenizer_flags as flags
from vfmtok.pretrained.published import PUBLISHED, VFMTOK

SCRIPTS = Path(__file__).parents[1] / "scripts"
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
    """``command("sample_cfg.sh", "GPT-B", ...)`` -> the Python script and arguments that torchrun is given."""
    recorder = tmp_path / "python"
    recorder.write_text("#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done\n")  # instead of the interpreter
    recorder.chmod(0o755)

    def run(script: str, *arguments: str) -> tuple[str, list[str]]:
        environment = {**os.environ, "PYTHON": str(recorder), "PROC_PER_NODE": "8"}
        done = subprocess.run(
            [SCRIPTS / script, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
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
    script, arguments = command("train_tokenizer.sh", "--data-path", "images", "--epochs", "7")
    assert script == "vq_train.py"
    recipe = flags.tokenizer_recipe(flags.tokenizer_parser().parse_args(arguments))
    assert recipe.tokenizer.encoder.weights == "auto" and recipe.tokenizer.image_size == 336
    assert recipe.optimizer.lr == 1e-4 and recipe.run.precision == "bf16" and recipe.run.global_batch == 256
    assert recipe.adversarial.discriminator == "dinogan" and recipe.ema.enabled
    assert recipe.optimizer.epochs == 7  # what is given last holds
    published = flags.tokenizer_recipe(
        flags.tokenizer_parser().parse_args(command("train_tokenizer.sh", "--data-path", "images")[1])
    )
    assert published.optimizer.epochs == 50


@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_generator_s_training(command, name, tmp_path):
    script, arguments = command(f"train_{name}.sh", "--code-path", str(tmp_path / "codes"))
    assert script == "train_c2i.py"
    args = gpt_flags.gpt_parser().parse_args(arguments)
    assert args.gpt_model == SIZES[name]
    epochs = {path: published.file.rpartition("-")[2] for path, published in PUBLISHED[VFMTOK].parts.items()}
    small_caches.write_cache(tmp_path / "codes")
    recipe = gpt_flags.gpt_recipe(args)
    assert f"{recipe.optimizer.epochs:g}e.pt" == epochs[SIZES[name]]
    assert recipe.optimizer.lr == 1e-4 and recipe.optimizer.lr_batch == 256 and recipe.ema.enabled
    assert (recipe.parallel == "fsdp") == (name in ("gpt_xxl", "gpt_2b", "gpt_3b"))
    assert recipe.data.vq_ckpt == VFMTOK and recipe.run.results_dir == f"results/{SIZES[name]}"


def test_the_tokenizer_s_evaluation(command):
    script, arguments = command("evaluate_tokenizer.sh", "--anno-file", "images", "--no-lpips")
    args = evaluation_flags.reconstruction_parser().parse_args(arguments)
    assert script == "vqgan_test.py" and args.vq_ckpt == VFMTOK and args.image_size_eval == 256 and args.no_lpips


@pytest.mark.parametrize(("script", "scale"), [("sample_cfg.sh", "1.5"), ("sample_no_cfg.sh", "1")])
@pytest.mark.parametrize("size", sorted(SIZES.values()))
def test_sampling(command, script, scale, size):
    started, arguments = command(script, size, "--ref-batch", "ref.npz")
    args = evaluation_flags.generation_parser().parse_args(arguments)
    assert (
        started == "test_net.py" and args.gpt_model == size and args.cfg_scale == scale and args.reference == "ref.npz"
    )
    samples = evaluation_flags.samples_of(args)
    assert samples.count == 50_000 and samples.precision == "bf16" and samples.classes == "random"
    assert args.vq_ckpt == args.gpt_ckpt == VFMTOK


@pytest.mark.parametrize("script", ["sample_cfg.sh", "sample_no_cfg.sh", "torchrun.sh"])
def test_without_arguments_it_tells_its_usage(script):
    done = subprocess.run([SCRIPTS / script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and done.stderr.count("\n") == 1
