"""Checkpoints that are damaged, cut or not written: what is lost then, and what is not."""

import errno
import os
import resource
import signal

import pytest
import torch
from training_runs import ROOT, logged

from vfmtok.errors import ConfigError, WeightsError
from vfmtok.weights import checkpoint


def test_a_damaged_checkpoint_is_passed_over(tiny_recipe, train, caplog):
    """Truncated, then changed in one byte, then without its state: each time the one before is taken."""
    whole = train(tiny_recipe(name="whole"))
    for damage in ("truncate", "flip", "remove"):
        folder = train(tiny_recipe(name=damage))
        newest = folder / "checkpoints/step_0000012"
        if damage == "truncate":
            with open(newest / "ema.safetensors", "r+b") as file:
                file.truncate(1000)
        elif damage == "flip":
            content = bytearray((newest / "model_optimizer.safetensors").read_bytes())
            content[-100] ^= 1
            (newest / "model_optimizer.safetensors").write_bytes(content)
        else:
            (newest / "state.json").unlink()
        caplog.clear()
        train(tiny_recipe(name=damage))
        assert "step_0000012" in caplog.text and "falling back" in caplog.text
        a, b = (checkpoint.load(run / "checkpoints/step_0000012") for run in (whole, folder))
        assert all(torch.equal(a.parts["model"][name], b.parts["model"][name]) for name in a.parts["model"])


def test_damaged_checkpoints_do_not_crowd_out_good_ones(tmp_path):
    """After a fall-back from 8 to 4, the checkpoint of 6 is the newest, not 8. What a killed process left goes."""
    folder = checkpoint.CheckpointFolder(tmp_path, keep=1)

    def save(step: int) -> None:
        folder.save(checkpoint.Checkpoint(step, {"model": {"w": torch.full((1,), float(step))}}, {}))

    save(4)
    kept = tmp_path / "kept"
    (tmp_path / "step_0000004").rename(kept)
    save(8)
    kept.rename(tmp_path / "step_0000004")
    (tmp_path / "step_0000008/model.safetensors").write_bytes(b"cut")
    (tmp_path / "step_0000005.tmp").mkdir()
    (tmp_path / "step_0000003.old").mkdir()
    assert folder.open_newest().step == 4
    save(6)
    assert folder.open_newest().step == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000006", "step_0000008"]


def save_of(folder: checkpoint.CheckpointFolder, step: int, value: float) -> None:
    folder.save(checkpoint.Checkpoint(step, {"model": {"w": torch.full((1,), value)}}, {}))


def test_a_checkpoint_outlives_a_failure_to_replace_it(tmp_path, monkeypatch):
    """The same step once more, and the file system fails between the two renamings."""
    folder = checkpoint.CheckpointFolder(tmp_path)
    save_of(folder, 4, 1.0)
    honest = os.rename

    def rename(source, target):
        if source.name.endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        honest(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        save_of(folder, 4, 2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000004"]
    assert folder.open_newest().read().parts["model"]["w"] == 1


def test_a_checkpoint_outlives_a_process_killed_while_it_replaced_it(tmp_path):
    """It is then called .old, beside a new one that never got its name."""
    folder = checkpoint.CheckpointFolder(tmp_path, keep=2)
    save_of(folder, 4, 1.0)

    def kill() -> None:
        (tmp_path / "step_0000004").rename(tmp_path / "step_0000004.old")
        (tmp_path / "step_0000004.tmp").mkdir()

    kill()
    assert folder.steps() == [4] and folder.open_newest().read().parts["model"]["w"] == 1
    save_of(folder, 6, 2.0)  # another one: it stays
    assert folder.steps() == [4, 6] and checkpoint.load(folder.path(4)).parts["model"]["w"] == 1
    save_of(folder, 4, 3.0)  # itself: it is replaced
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000004", "step_0000006"]
    kill()
    save_of(folder, 8, 4.0)  # one too many: it goes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000006", "step_0000008"]


def test_state_json_is_sealed(tiny_recipe, train):
    """A step count changed by hand, or by a bad disk, is no checkpoint."""
    folder = train(tiny_recipe("optimizer.steps=4")) / "checkpoints/step_0000004"
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(text.replace('"samples_seen": 16', '"samples_seen": 17'))
    with pytest.raises(WeightsError, match="cut or changed"):
        checkpoint.load(folder)


def test_full_disk_while_saving(tiny_recipe, train, capsys):
    """The run goes on and says so; the checkpoint before stays whole."""
    recipe = tiny_recipe("optimizer.steps=12", "run.save_every=4")
    train(tiny_recipe("optimizer.steps=4"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(ConfigError, match="could not be written"):  # at the very end it has to be an error
            train(recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, former)
    assert "ALARM at step 8: the checkpoint of step 8 could not be written" in capsys.readouterr().out
    folder = tiny_recipe().run.results_dir
    assert [path.name for path in checkpoint.CheckpointFolder(ROOT / folder / "checkpoints").folder.iterdir()] == [
        "step_0000004"
    ]
    assert checkpoint.load(checkpoint.CheckpointFolder(ROOT / folder / "checkpoints").path(4)).step == 4
    train(recipe)  # the same command, with room on the disk
    assert max(logged(ROOT / folder)) == 12


def test_a_disk_that_cannot_be_read_back_while_saving(tiny_recipe, train, monkeypatch, capsys):
    """The hash of what was written fails, as by a bad sector: this checkpoint is lost, not the run."""
    honest, calls = checkpoint.sha256, []

    def sha256(path):
        calls.append(path)
        if len(calls) == 2:
            raise WeightsError(f"no weight file at {path}: Input/output error")
        return honest(path)

    monkeypatch.setattr(checkpoint, "sha256", sha256)
    folder = train(tiny_recipe("optimizer.steps=4", "run.save_every=2"))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_0000004"]
    told = capsys.readouterr().out
    assert "ALARM at step 2: the checkpoint of step 2 could not be written" in told and "Input/output error" in told
