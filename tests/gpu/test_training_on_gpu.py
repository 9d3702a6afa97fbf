"""Both trainings on the GPU by the commands: 200 steps in bfloat16, resumed; FSDP2; NCCL where there are several."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

pytestmark = pytest.mark.gpu
STEPS = int(os.environ.get("VFMTOK_TEST_STEPS", 200))
TINY = (
    "--transformer-config-file", "configs/tiny.yaml", "--set", "loss.perceptual=encoder", "--disc-type", "patchgan",
    "--disc-start", "10", "--global-batch-size", "16", "--set", "data.num_workers=2", "--set", "run.validate_every=100",
    "--set", "run.validation_images=32", "--set", "run.tensorboard=false", "--set", "optimizer.warmup_steps=10",
)  # fmt: skip
GPT = (
    "--set", "generator.n_layer=2", "--set", "generator.dim=64", "--set", "generator.n_head=4",
    "--global-batch-size", "16", "--set", "run.validate_every=100", "--set", "run.tensorboard=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(device, root, tmp_path_factory) -> Path:
    """The sample set, a tokenizer trained for 200 steps, and its codes."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "configs").symlink_to(root / "configs")
    run(root, folder, device, "-m", "vfmtok", "prepare", "sample", "emoji")
    train(root, folder, device, "vq_train.py", "tokenizer", STEPS, *TINY, "--data-path", "emoji")
    codes = ("--vq-ckpt", "tokenizer", "--views", "center")
    run(root, folder, device, "-m", "vfmtok", "codes", "emoji/train_lmdb", "codes/train", *codes)
    run(root, folder, device, "-m", "vfmtok", "codes", "emoji/val_lmdb", "codes/val", *codes)
    return folder


def run(root: Path, folder: Path, device: torch.device, *arguments: str, processes: int = 1) -> str:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else {}
    environment = {**os.environ, **hidden, "PYTHONPATH": str(root)}
    command = [sys.executable, *(launcher if processes > 1 else ()), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def train(root, folder, device, script: str, name: str, steps: int, *flags: str, processes: int = 1) -> list[dict]:
    """Train to ``steps`` and return the log."""
    settings = ("--results-dir", name, "--mixed-precision", "bf16", "--log-every", "10", "--set")
    arguments = (str(root / script), *flags, *settings, f"optimizer.steps={steps}")
    run(root, folder, device, *arguments, processes=processes)
    return [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / f"checkpoints/step_{step:07d}/model.safetensors")


def test_a_tokenizer_trains(place):
    lines = [json.loads(line) for line in (place / "tokenizer/log.jsonl").read_text().splitlines()]
    pixel = [line["loss/pixel"] for line in lines if "loss/pixel" in line]
    assert pixel[-1] < pixel[0] and all(line.get("skipped_steps", 0) == 0 for line in lines)


def test_a_generator_trains_and_resumes(place, root, device):
    """Bit for bit on a CPU; on a GPU kernels may add in another order."""
    data = ("--code-path", "codes/train", *GPT)
    whole = train(root, place, device, "train_c2i.py", "whole", STEPS, *data)
    losses = [line["loss/token"] for line in whole if "loss/token" in line]
    assert losses[-1] < losses[0]
    first = train(root, place, device, "train_c2i.py", "cut", STEPS // 2, *data)
    both = train(root, place, device, "train_c2i.py", "cut", STEPS, *data)
    resumed = [line["step"] for line in both[len(first) :] if "loss/token" in line]
    assert resumed and min(resumed) > STEPS // 2  # it did not begin again
    again = [line["loss/token"] for line in both if "loss/token" in line]
    assert again == pytest.approx(losses, rel=1e-2)
    for name, tensor in weights(place / "whole", STEPS).items():
        found = weights(place / "cut", STEPS)[name]
        if device.type == "cpu":
            assert torch.equal(found, tensor), name
        else:
            torch.testing.assert_close(found, tensor, rtol=0.05, atol=0.02)


def test_saving_in_the_background(place, root, device):
    data = ("--code-path", "codes/train", *GPT, "--set", "run.save_every=10", "--set")
    for name, saved in (("at_once", "false"), ("background", "true")):
        train(root, place, device, "train_c2i.py", name, 20, *data, f"run.async_save={saved}")
    for step in (10, 20):
        found = weights(place / "background", step)
        for name, tensor in weights(place / "at_once", step).items():
            tolerance = {"rtol": 0, "atol": 0} if device.type == "cpu" else {"rtol": 0.05, "atol": 0.02}
            torch.testing.assert_close(found[name], tensor, **tolerance)


def test_sampling_and_evaluation(place, root, device):
    train(root, place, device, "train_c2i.py", "sampled", 20, "--code-path", "codes/train", *GPT)
    models = ("--gpt", "sampled", "--vq-ckpt", "tokenizer")
    settings = ("--classes", "0,1", "--n", "2", "--precision", "bf16", "--out", "grid.png")
    run(root, place, device, "-m", "vfmtok", "sample", *models, *settings)
    assert (place / "grid.png").stat().st_size > 1000
    flags = ("--image-size-eval", "64", "--num-fid-samples", "8", "--no-fid", "--sample-dir", "samples")
    run(root, place, device, str(root / "test_net.py"), "--gpt-ckpt", "sampled", "--vq-ckpt", "tokenizer", *flags)


def test_sharded_training_over_all_gpus(place, root, device):
    """FSDP2 and NCCL; two processes of gloo on a CPU."""
    processes = 2 if device.type == "cpu" else torch.cuda.device_count()
    if processes == 1:
        pytest.skip("one GPU: --parallel fsdp asks for several processes")
    data = ("--code-path", "codes/train", *GPT, "--parallel", "fsdp")
    lines = train(root, place, device, "train_c2i.py", "sharded", 20, *data, processes=processes)
    assert any("loss/token" in line for line in lines)


def test_one_copy_on_every_gpu(place, root, device):
    """DDP and NCCL, a tokenizer with its discriminator."""
    processes = 2 if device.type == "cpu" else torch.cuda.device_count()
    if processes == 1:
        pytest.skip("one GPU")
    train(root, place, device, "vq_train.py", "copies", 20, *TINY, "--data-path", "emoji", processes=processes)


def test_compiled_training(place, root, cuda):
    train(root, place, cuda, "train_c2i.py", "compiled", 20, "--code-path", "codes/train", *GPT, "--compile")
