"""Training that begins with published weights, by the repository's name."""

import runpy
import sys

import pytest
import torch
from small_caches import write_cache

import vfmtok
from vfmtok.hub.published import VFMTOK


@pytest.mark.parametrize("named", [True, False])
def test_a_generator_of_the_size_that_is_named(hub, released, gpt, root, tmp_path, monkeypatch, capsys, named):
    """At a learning rate of 0 it stays the published one. The release holds several: without a name there is none."""
    hub.repositories[VFMTOK] = released
    write_cache(tmp_path / "train", codes=64)
    config = gpt.config
    flags = [
        "--code-path", f"{tmp_path}/train", "--results-dir", f"{tmp_path}/run", "--global-batch-size", "4",
        "--mixed-precision", "none", "--lr", "0", "--finetune", "--gpt-ckpt", VFMTOK, "--set", "optimizer.steps=1",
        *(word for name in ("n_layer", "n_head", "dim") for word in ("--set", f"gpt.{name}={getattr(config, name)}")),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train_c2i.py", *flags, *(["--gpt-model", "GPT-B"] if named else [])])
    if not named:
        with pytest.raises(SystemExit):
            runpy.run_path(str(root / "train_c2i.py"), run_name="__main__")
        assert "name one, such as GPT-B (--gpt-model)" in capsys.readouterr().err
        return
    runpy.run_path(str(root / "train_c2i.py"), run_name="__main__")
    count = len(gpt.state_dict())
    assert f"{count} of {count} tensors loaded" in capsys.readouterr().out
    trained = vfmtok.load_gpt(tmp_path / "run")
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in gpt.state_dict().items())
