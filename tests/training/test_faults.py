"""What goes wrong in a long run, and what is left then."""

import os
import runpy
import signal
import sys
import time
from functools import partial

import pytest
import ranks
import torch
from training_runs import ROOT, children, finish, last_step, logged, start, wait_for_step

from vfmtok import distributed
from vfmtok.errors import ConfigError, DataError, SharedError, WeightsError
from vfmtok.training.health import Diverged, SkippedSteps
from vfmtok.training.interruption import Stopped, StopRequest
from vfmtok.training.objective import TokenizerObjective
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.training.tokenizer_run import TokenizerRun
from vfmtok.weights import checkpoint


@pytest.fixture
def poisoned(monkeypatch):
    """Make the loss of some steps not finite: ``poisoned({5, 6}, nan)``."""

    def at(steps: set[int], value: float = float("nan")):
        honest, calls = TokenizerObjective.__call__, iter(range(10**6))

        def call(self, *arguments, **counts):
            terms = honest(self, *arguments, **counts)
            return {**terms, "pixel": terms["pixel"] * value} if next(calls) in steps else terms

        monkeypatch.setattr(TokenizerObjective, "__call__", call)

    return at


def test_who_is_to_stop_saves_before_anything_long(tiny_recipe, train, monkeypatch, capsys):
    """SIGTERM comes in step 3; the validation that is due is left to the run that continues."""
    honest, calls = TokenizerObjective.__call__, []

    def call(self, *arguments, **counts):
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        calls.append(1)
        return honest(self, *arguments, **counts)

    monkeypatch.setattr(TokenizerObjective, "__call__", call)
    folder = train(tiny_recipe("run.validate_every=3"))
    assert (folder / "checkpoints/step_0000003").is_dir() and "stopped after step 3 of 12" in capsys.readouterr().out
    assert not logged(folder, "validation/psnr")
    train(tiny_recipe("run.validate_every=3"))
    whole = train(tiny_recipe("run.validate_every=3", name="whole"))
    assert logged(folder, "validation/psnr") == logged(whole, "validation/psnr")
    assert list(logged(folder, "validation/psnr")) == [3, 6, 9, 12]


def _refused(recipes: list[TokenizerRecipe], rank: int) -> torch.Tensor:
    with pytest.raises(SharedError) as caught:
        TokenizerRun(recipes[rank], distributed.World(rank, 2, torch.device("cpu")))
    return torch.tensor(list(str(caught.value).encode()))


@pytest.mark.parametrize(
    ("missing", "message"),
    [("data.path=/nowhere", "/nowhere"), ("run.results_dir=/nowhere", "would begin at step 4, 16 samples seen of")],
)
def test_what_one_process_finds_wrong_all_say(tiny_recipe, train, tmp_path, missing, message):
    """A node without the images; a node that does not see the folder of the run."""
    train(tiny_recipe("optimizer.steps=4"))
    program = partial(_refused, [tiny_recipe(), tiny_recipe(missing)])
    told = [bytes(text.tolist()).decode() for text in ranks.run(program, tmp_path)]
    assert told[0] == told[1] and message in told[0]


def test_non_finite_steps_are_skipped(tiny_recipe, train, poisoned):
    """Steps 5 and 6 change nothing: neither weights nor moments nor their step counts."""
    poisoned({5, 6})
    folder = train(tiny_recipe("run.save_every=1", "run.keep=12"))
    at = [checkpoint.load(folder / f"checkpoints/step_{step:07d}").parts for step in (5, 6, 7, 8)]
    for part in ("model", "model_optimizer"):
        for name, tensor in at[0][part].items():
            assert torch.equal(tensor, at[1][part][name]) and torch.equal(tensor, at[2][part][name]), name
    assert not torch.equal(at[2]["model"]["to_latents.weight"], at[3]["model"]["to_latents.weight"])
    assert logged(folder, "skipped_steps")[12] == 2
    assert all(torch.isfinite(tensor).all() for tensor in at[3]["ema"].values())


def test_infinite_losses_in_a_row_end_the_run(tiny_recipe, train, poisoned):
    poisoned(set(range(4, 30)), float("inf"))
    with pytest.raises(Diverged, match=r"stopped at step 14: .* 10 steps in a row .*pixel (inf|nan)"):
        train(tiny_recipe("optimizer.steps=30"))


def test_networks_that_skip_by_turns_do_not_end_a_run():
    """Each is counted apart: only ten skipped steps of one network in a row are a divergence."""
    counts = {name: SkippedSteps(torch.device("cpu"), name) for name in ("model", "discriminator")}
    for step in range(40):
        for name, skips in (("model", step % 2 == 0), ("discriminator", step % 2 == 1)):
            counts[name].add(torch.tensor(float("inf") if skips else 1.0))
            counts[name].check(step, {})
    assert [skipped.total for skipped in counts.values()] == [20, 20]
    with pytest.raises(Diverged, match="the discriminator's gradient"):
        for step in range(40, 50):
            counts["discriminator"].add(torch.tensor(float("nan")))
            counts["discriminator"].check(step, {})


@pytest.mark.slow  # products in fp16 are slow on a CPU
def test_fp16_runs_on_the_cpu(tiny_recipe, train):
    folder = train(tiny_recipe("run.precision=fp16"))
    scale = checkpoint.load(folder / "checkpoints/step_0000012").numbers["parts"]["model"]["scale"]
    assert 0 < scale <= 2**10 and logged(folder)[12] < logged(folder)[1]


def test_resuming_with_other_settings(tiny_recipe, train, capsys):
    train(tiny_recipe("optimizer.steps=4"))
    with pytest.raises(WeightsError, match=r"another model: tokenizer\.sampler\.depth is 1, was 2"):
        train(tiny_recipe("tokenizer.sampler.depth=1"))
    train(tiny_recipe("optimizer.steps=6", "optimizer.lr=2e-3"))
    assert "changed since the checkpoint: optimizer.lr 0.001 -> 0.002" in capsys.readouterr().out


def test_bad_input_is_one_line(recipe_file, tmp_path, monkeypatch, capsys):
    """Exit code 2, one line on stderr, no traceback."""
    cases = {
        "--codebook-sise 4": "unknown flag --codebook-sise (closest match: --codebook-size)",
        "--mixed-precision fp8": "invalid choice: 'fp8'",
        "--global-batch-size 5 --gradient-accumulation-steps 2": "5 is not divisible by 1 processes x 2",
        "--data-path /nowhere": "/nowhere",
        "--set tokenizer.sampler.dept=2": "closest match: 'tokenizer.sampler.depth'",
        "--image-size 33": "image_size must be a multiple of",
        "--disc-type dinogan --disc-start 0 --set adversarial.weights=nowhere.pth": "nowhere.pth",
        "--finetune": "--finetune needs --vq-ckpt",
        f"--finetune --vq-ckpt {tmp_path}/none.pt": "no weight file at",
        "--set loss.perceptual=lpips-vgg --set loss.perceptual_weights=none.pth": "none.pth",
    }
    for case, message in cases.items():
        monkeypatch.setattr(sys, "argv", ["vq_train.py", "--recipe", str(recipe_file()), *case.split()])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "vq_train.py"), run_name="__main__")
        error = capsys.readouterr().err
        assert end.value.code == 2, case
        assert message in error and len(error.strip().splitlines()) == 1, (case, error)


def test_too_many_bad_records(tiny_recipe, train, tmp_path):
    from vfmtok.data.records import Record, write_records

    write_records(tmp_path / "lmdb", [Record(b"no image", 0, f"{i}.png") for i in range(8)], classes=["a"])
    with pytest.raises(DataError, match="bad records"):
        train(tiny_recipe(f"data.path={tmp_path}/lmdb"))


def test_a_log_that_cannot_be_written_stops_nothing(tiny_recipe, train, capsys, tmp_path):
    (tmp_path / "run/log.jsonl").mkdir(parents=True)
    folder = train(tiny_recipe("optimizer.steps=4"))
    assert (folder / "checkpoints/step_0000004").is_dir()
    assert capsys.readouterr().err.count("logging fails, training continues") == 1


def test_a_terminal_that_is_gone_stops_nothing(recipe_file):
    """Nor does a full disk, where what is told goes into a file."""
    read, write = os.pipe()
    os.close(read)
    runs = {}
    with open("/dev/full", "wb") as full:
        for name, told in (("pipe", write), ("disk", full)):
            runs[name] = start(recipe_file("optimizer.steps=6", "run.validate_every=3", name=name), told=told)
    os.close(write)
    for name, process in runs.items():
        process.wait(timeout=120)
        assert last_step(recipe_file(name=name).parent / name) == 6, process.returncode
        assert checkpoint.load(recipe_file(name=name).parent / name / "checkpoints/step_0000006").step == 6


def test_an_interrupt_ends_after_the_step(recipe_file):
    recipe = recipe_file("optimizer.steps=100000")
    folder = recipe.parent / "run"
    process = start(recipe)
    wait_for_step(folder, 1, process)
    process.send_signal(signal.SIGINT)
    assert "the same command continues" in finish(process, timeout=60)
    assert checkpoint.CheckpointFolder(folder / "checkpoints").steps()[-1] == last_step(folder) > 0


def test_a_second_interrupt_ends_at_once(recipe_file):
    """In the midst of a step, of seconds here, and without a checkpoint."""
    recipe = recipe_file("optimizer.steps=100000", "run.global_batch=160", "run.accumulation=40")
    folder = recipe.parent / "run"
    process = start(recipe)
    wait_for_step(folder, 1, process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" not in out and "Traceback" not in err
    assert last_step(folder) == 1 and not checkpoint.CheckpointFolder(folder / "checkpoints").steps()


def test_sigterm_stops_two_processes(recipe_file):
    """Sent to one of them only, as a scheduler may: both stop after the same step."""
    recipe = recipe_file("optimizer.steps=100000")
    process = start(recipe, processes=2)
    wait_for_step(recipe.parent / "run", 1, process)
    os.kill(children(process.pid)[-1], signal.SIGTERM)
    assert "the same command continues" in finish(process, timeout=60)


def _batches_until_stopped(rank: int) -> torch.Tensor:
    """Of a validation of 5 batches after a training of 3 steps; the second process is asked to stop in batch 2."""
    with StopRequest() as stop:
        assert not any(stop() for _ in range(3))
        for batch in range(5):
            if batch == 2 and rank == 1:
                signal.raise_signal(signal.SIGTERM)
            try:
                stop.raise_if_asked()
            except Stopped:
                return torch.tensor([batch, stop(), stop()])
    return torch.tensor([-1, 0, 0])


def test_processes_end_a_validation_at_the_same_batch(tmp_path):
    first, second = ranks.run(_batches_until_stopped, tmp_path)
    assert first.tolist() == second.tolist() and first[0] == 2 and first[2] == 1


def test_two_runs_in_one_folder(recipe_file, tiny_recipe, train):
    """The second one is refused; when the first is gone, however it went, the folder is free."""
    recipe = recipe_file("optimizer.steps=100000")
    process = start(recipe)
    wait_for_step(recipe.parent / "run", 1, process)
    with pytest.raises(ConfigError, match="another run is at work"):
        train(tiny_recipe("optimizer.steps=100000"))
    process.kill()
    process.wait()
    train(tiny_recipe("optimizer.steps=3", name="run2"))
    train(tiny_recipe("optimizer.steps=1"))
