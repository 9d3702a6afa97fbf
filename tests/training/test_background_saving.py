"""``run.async_save``: the run goes on while a checkpoint is written, and nothing else is different."""

import signal
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import ranks
import slow_disks
import torch
from slow_disks import FullFolder, SlowFolder, TerminatingFolder
from small_caches import recipe_file, small_recipe, write_cache
from torch import Tensor
from training_runs import assert_same, final, killed_again_and_again, last_step, start

import vfmtok
from vfmtok import distributed
from vfmtok.errors import ConfigError, SharedError
from vfmtok.training import generator_run
from vfmtok.training.run_log import RunLog
from vfmtok.training.saving import BackgroundSaver
from vfmtok.training.train_generator import train_generator
from vfmtok.weights import sharded
from vfmtok.weights.checkpoint import Checkpoint, CheckpointFolder, load

ALONE = distributed.World(0, 1, torch.device("cpu"))


def trained(folder: Path, name: str, world: distributed.World = ALONE, *, saved: bool = True, **sections) -> Path:
    """With ``saved`` in the background."""
    run = {"async_save": saved, "keep": 3, **sections.pop("run", {})}
    train_generator(small_recipe(folder, name, run=run, **sections), world)
    return folder / name


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# --------------------------------------------------------------------------------------
# The saver by itself
# --------------------------------------------------------------------------------------


@dataclass
class State:
    """A run that has one weight, the step."""

    step: int
    weight: Tensor

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.step, {"model": {"weight": self.weight}}, {"metrics": {}})

    def train(self, steps: int) -> None:
        self.step += steps
        self.weight += steps


class GatedFolder(CheckpointFolder):
    """Writes when ``gate`` is open, and counts how many write at once."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.gate, self.begun, self.at_work, self.most = threading.Event(), [], 0, 0

    def save(self, saved, group=None):
        self.begun.append(saved.step)
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        assert self.gate.wait(slow_disks.PATIENCE)
        self.at_work -= 1
        return super().save(saved, group)


@pytest.fixture
def log(tmp_path):
    run = small_recipe(tmp_path, run={"tensorboard": False}).run
    return RunLog(tmp_path, run, active=True, step=0, total_steps=12, samples_per_step=1, recipe={})


def test_a_save_waits_for_the_one_before_and_for_nothing_else(tmp_path, log, capsys):
    folder, state = GatedFolder(tmp_path / "checkpoints"), State(4, torch.full((1,), 4.0))
    saver = BackgroundSaver(folder, log, ALONE)
    saver.save(state, must=False)  # comes back, though the gate is shut
    assert not folder.steps() and not saver.has_failed()
    state.train(4)
    second = threading.Thread(target=saver.save, args=(state, False))
    second.start()
    second.join(0.3)
    assert second.is_alive() and folder.begun == [4]
    folder.gate.set()
    second.join(slow_disks.PATIENCE)
    state.train(1)
    saver.finish()
    assert folder.steps() == [4, 8] and folder.most == 1
    for step in folder.steps():
        assert load(folder.path(step)).parts["model"]["weight"] == step  # as it was then
    told = capsys.readouterr().out
    assert "saving step 8 waited" in told and told.count("saved ") == 2


def test_a_failure_is_told_once_and_by_whatever_comes_first(tmp_path, log):
    for last in ("save", "finish"):
        folder, state = FullFolder(tmp_path / last), State(4, torch.full((1,), 4.0))
        saver = BackgroundSaver(folder, log, ALONE)
        saver.save(state, must=False)
        slow_disks.wait_until(lambda made=folder: made.steps() == [4], "the first checkpoint")
        state.train(4)
        saver.save(state, must=False)
        slow_disks.wait_until(saver.has_failed, "the failure")
        with pytest.raises(ConfigError, match=r"checkpoint of step 8 could .*\(No space left on device\)"):
            saver.finish() if last == "finish" else saver.save(state, must=False)
        assert not saver.has_failed() and folder.steps() == [4]
        saver.finish()


def test_with_must_it_is_there_afterwards(tmp_path, log):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    saver = BackgroundSaver(folder, log, ALONE)
    saver.save(State(4, torch.ones(1)), must=True)
    assert load(folder.path(4)).step == 4


def test_an_error_of_the_run_does_not_lose_what_is_written(tmp_path, log):
    folder = GatedFolder(tmp_path / "checkpoints")
    threading.Timer(0.2, folder.gate.set).start()
    with pytest.raises(ZeroDivisionError), BackgroundSaver(folder, log, ALONE) as saver:
        saver.save(State(4, torch.ones(1)), must=False)
        raise ZeroDivisionError
    assert load(folder.path(4)).step == 4


# --------------------------------------------------------------------------------------
# Whole runs
# --------------------------------------------------------------------------------------


def test_steps_go_on_while_a_checkpoint_is_written(caches, monkeypatch):
    """It waits for later steps, which so wait for nothing; the checkpoints are those of a run that waits."""
    whole = trained(caches, "whole", saved=False)
    monkeypatch.setattr(generator_run, "CheckpointFolder", SlowFolder)
    folder = trained(caches, "background")
    assert kept(folder) == ["step_0000004", "step_0000008", "step_0000012"]
    for step in (4, 8, 12):
        assert_same(final(whole, step), final(folder, step))


def test_a_tokenizer_too(tiny_recipe, train):
    whole, folder = (
        train(tiny_recipe(f"run.async_save={saved}", "optimizer.steps=8", "codebook.revive=true", name=f"run_{saved}"))
        for saved in ("false", "true")
    )
    for step in (4, 8):
        assert_same(final(whole, step), final(folder, step))


def test_a_full_disk_ends_the_run(caches, monkeypatch):
    """At the next step or at the save that follows, not after a thousand; the same command continues."""
    monkeypatch.setattr(generator_run, "CheckpointFolder", FullFolder)
    with pytest.raises(ConfigError, match=r"of step 8 could not be written \(No space left"):
        trained(caches, "run", optimizer={"steps": 1000})
    assert kept(caches / "run") == ["step_0000004"] and last_step(caches / "run") <= 12
    monkeypatch.undo()
    assert_same(final(trained(caches, "whole", saved=False)), final(trained(caches, "run")))


def test_a_run_that_is_to_stop_waits(caches, monkeypatch):
    monkeypatch.setattr(generator_run, "CheckpointFolder", TerminatingFolder)
    folder = trained(caches, "run")
    (first, last) = kept(folder)
    assert first == "step_0000004" and not (folder / "finished").exists()
    assert load(folder / "checkpoints" / last).step == last_step(folder) < 12
    monkeypatch.undo()
    assert_same(final(trained(caches, "whole", saved=False)), final(trained(caches, "run")))


@pytest.mark.slow
def test_killed_and_told_to_stop_anywhere(caches):
    """By the script, which saves after every third step."""
    run = {"async_save": True, "keep": 3, "save_every": 3}
    endless = recipe_file(caches, "cut", optimizer={"steps": 100_000}, run=run)
    ends = killed_again_and_again(lambda: start(endless, script="train_c2i.py"), caches / "cut", kills=4, seed=1)
    assert ends == [-signal.SIGKILL, 0, -signal.SIGKILL, 0]
    steps = {"steps": last_step(caches / "cut") + 20}
    whole = trained(caches, "whole", saved=False, optimizer=steps, run={"save_every": 3})
    assert_same(final(whole, steps["steps"]), final(trained(caches, "cut", optimizer=steps), steps["steps"]))


# --------------------------------------------------------------------------------------
# Two processes
# --------------------------------------------------------------------------------------

PARALLEL = ("ddp", "fsdp")


def _both_ways(folder: str, rank: int) -> None:
    world = distributed.World(rank, 2, torch.device("cpu"))
    for parallel in PARALLEL:
        slow_disks.of_generators(CheckpointFolder)
        trained(Path(folder), f"{parallel}_at_once", world, saved=False, parallel=parallel)
        slow_disks.of_generators(SlowFolder)
        trained(Path(folder), f"{parallel}_background", world, parallel=parallel)


def _failing(folder: str, rank: int) -> Tensor:
    """Of DDP's processes the first can't write, of FSDP2's the second. Returns whether this one learned of it."""
    world, told = distributed.World(rank, 2, torch.device("cpu")), []
    honest = sharded.write

    def write(part: Path, tensors: dict[str, Tensor], group=None) -> None:
        if rank == 1 and "step_0000008" in str(part):
            (part / "shard-00002-model-00001-of-00001.safetensors").mkdir(parents=True)  # opening it fails
        honest(part, tensors, group)

    sharded.write = write
    for parallel, kind in zip(PARALLEL, (FullFolder, CheckpointFolder), strict=True):
        slow_disks.of_generators(kind)
        try:
            trained(Path(folder), parallel, world, parallel=parallel, optimizer={"steps": 1000})
        except SharedError as error:
            told.append("step 8 could not be written" in str(error))
    return torch.tensor(told)


def _both(folder: str, rank: int) -> Tensor:
    _both_ways(folder, rank)
    return _failing(folder, rank)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> Path:
    """Runs of two processes: those that can write, both ways, and those that can't."""
    folder = tmp_path_factory.mktemp("by_two")
    write_cache(folder / "train")
    write_cache(folder / "val", count=11, views=1, seed=1)
    ranks.run(partial(_both, str(folder)), folder)
    return folder


def test_two_processes_go_on_while_a_checkpoint_is_written(by_two):
    """Validation, too, in which they send each other numbers; of FSDP2 both write meanwhile."""
    for parallel in PARALLEL:
        at_once, background = (by_two / f"{parallel}_{way}" for way in ("at_once", "background"))
        for step in (4, 8, 12):
            assert_same(final(at_once, step), final(background, step))
    folder = by_two / "fsdp_background"
    names = {path.name.split("-")[1] for path in (folder / "checkpoints/step_0000008/model").iterdir()}
    assert names == {"00001", "00002"}
    model = vfmtok.from_pretrained(folder, "generator")
    assert all(torch.equal(tensor, final(folder).parts["ema"][name]) for name, tensor in model.state_dict().items())
    one, other = (trained(by_two, f"fsdp_{way}", optimizer={"steps": 14}) for way in ("at_once", "background"))
    assert_same(final(one, 14), final(other, 14))  # continued by one process


def test_what_one_process_cannot_write_ends_all(by_two):
    for rank in range(2):
        assert torch.load(by_two / f"rank{rank}.pt", weights_only=True).tolist() == [True, True]
    for parallel in PARALLEL:
        assert kept(by_two / parallel) == ["step_0000004"] and last_step(by_two / parallel) <= 12


def _stuck(folder: str, parallel: str, size: int, rank: int) -> None:
    if rank == size - 1:
        slow_disks.stick(step=8)
    trained(Path(folder), "run", distributed.World(rank, size, torch.device("cpu")), parallel=parallel)


@pytest.mark.parametrize(("size", "parallel"), [(1, "ddp"), (2, "fsdp")])
def test_killed_while_a_checkpoint_is_written(caches, size, parallel):
    """The one before is opened, and the run continues from there, here in one process."""
    program = partial(_stuck, str(caches), parallel, size)
    context = torch.multiprocessing.spawn(ranks._join, (program, str(caches), size), nprocs=size, join=False)
    try:
        slow_disks.wait_until(lambda: last_step(caches / "run") >= 11, "step 11")
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    assert kept(caches / "run") == ["step_0000004", "step_0000008.tmp"]
    assert any((caches / "run/checkpoints/step_0000008.tmp").iterdir())
    assert vfmtok.from_pretrained(caches / "run", "generator")
    assert load(CheckpointFolder(caches / "run/checkpoints").newest()).step == 4
    whole, folder = trained(caches, "whole", saved=False), trained(caches, "run")
    assert kept(folder) == ["step_0000004", "step_0000008", "step_0000012"]
    for name, tensor in final(whole).parts["model"].items():
        torch.testing.assert_close(final(folder).parts["model"][name], tensor, rtol=1e-3, atol=3e-5)
    if size == 1:
        assert_same(final(whole), final(folder))
