"""Training that begins with published weights, by the repository's name."""

import runpy
import sys

import pytest
import torch
from small_caches import write_cache

import vfmtok
from vfmtok.pretrained.published import VFMTOK


@pytest.fixture
def train_c2i(hub, released, gpt, root, tmp_path, monkeypatch):
    """One step at a learning rate of 0 from the generator of this size, or of none that is named."""

    def run(*size: str) -> None:
        hub.repositories[VFMTOK] = released
        write_cache(tmp_path / "train", codes=64)
        shape = [f"--set=gpt.{name}={getattr(gpt.config, name)}" for name in ("n_layer", "n_head", "dim")]
        flags = [
            "--code-path", f"{tmp_path}/train", "--results-dir", f"{tmp_path}/run", "--global-batch-size", "4",
            "--mixed-precision", "none", "--lr", "0", "--finetune", "--gpt-ckpt", VFMTOK, "--set", "optimizer.steps=1",
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["train_c2i.py", *flags, *shape, *size])
        runpy.run_path(str(root / "train_c2i.py"), run_name="__main__")

    return run


def test_a_generator_of_the_size_that_is_named(train_c2i, gpt, tmp_path, capsys):
    train_c2i("--gpt-model", "GPT-B")
    count = len(gpt.state_dict())
    assert f"{count} of {count} tensors loaded" in capsys.readouterr().out
    trained = vfmtok.from_pretrained(tmp_path / "run", "generator")
    for name, tensor in gpt.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name


def test_the_size_has_to_be_named(train_c2i, capsys):
    with pytest.raises(SystemExit):
        train_c2i()
    assert "'generator': name one, such as yexiguafu/VFMTok:GPT-B (GPT-B, GPT-L" in capsys.readouterr().err
