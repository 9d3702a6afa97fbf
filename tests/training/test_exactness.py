"""What a run computes does not depend on how it is cut, shared or accumulated."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from training_runs import finish, logged, start

from vfmtok.training import checkpoint


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "log.jsonl").exists() and max(logged(folder), default=0) >= step:
            return
        time.sleep(0.005)


def final(folder: Path, step: int) -> checkpoint.Checkpoint:
    return checkpoint.load(folder / f"checkpoints/step_{step:07d}")


def assert_same(a: checkpoint.Checkpoint, b: checkpoint.Checkpoint) -> None:
    """Bit for bit: weights, average, discriminator, moments, codebook counts, position."""
    assert a.parts.keys() == b.parts.keys()
    for part, tensors in a.parts.items():
        assert tensors.keys() == b.parts[part].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b.parts[part][name]), f"{part}: {name}"
    assert a.numbers["samples_seen"] == b.numbers["samples_seen"]


# A discriminator with running statistics, dropout, an average, k-means and revival: whatever has a state.
EVERYTHING = (
    "adversarial.discriminator=patchgan",
    "adversarial.start=6",
    "adversarial.update_start=3",
    "adversarial.lecam_weight=0.1",
    "tokenizer.decoder.attention_dropout=0.1",
    "codebook.continuous_steps=4",
    "codebook.kmeans=true",
    "codebook.revive=true",
    "codebook.window=150",
    "run.save_every=2",
    "data.num_workers=1",
)


def killed_again_and_again(recipe_file, steps: int, kills: int, seed: int):
    settings = (*EVERYTHING, f"optimizer.steps={steps}")
    whole = recipe_file(*settings, name="whole")
    cut = recipe_file(*settings, name="cut")
    uninterrupted = start(whole)
    folder, chance, ends = whole.parent / "cut", random.Random(seed), []
    for number in range(kills):
        process = start(cut)
        seen = max(logged(folder), default=0) if (folder / "log.jsonl").exists() else 0
        wait_for_step(folder, min(seen + chance.randint(1, 4), steps - 1), process)
        time.sleep(chance.uniform(0, 0.05))  # anywhere within a step, or in the midst of saving
        process.send_signal(signal.SIGTERM if number % 2 else signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        ends.append(process.returncode)
        assert process.returncode in (0, -signal.SIGKILL), err[-3000:]
    assert "finished" in finish(start(cut))
    finish(uninterrupted)
    assert_same(final(whole.parent / "whole", steps), final(folder, steps))
    assert logged(whole.parent / "whole") == logged(folder)
    return ends


def test_killed_runs_end_with_the_same_weights(recipe_file):
    ends = killed_again_and_again(recipe_file, steps=14, kills=3, seed=0)
    assert 0 in ends and -signal.SIGKILL in ends


@pytest.mark.slow
def test_twenty_kills(recipe_file):
    killed_again_and_again(recipe_file, steps=60, kills=20, seed=1)


def test_processes_and_passes_agree(recipe_file):
    """One process, two, and two passes at the same global batch: the same losses to 1e-5 over 20 steps."""
    settings = (
        "optimizer.steps=20", "codebook.continuous_steps=5", "codebook.kmeans=true", "codebook.revive=true",
        "codebook.window=200", "run.validate_every=20",
    )  # fmt: skip
    runs = {
        "one": start(recipe_file(*settings, name="one")),
        "two": start(recipe_file(*settings, name="two"), processes=2),
        "passes": start(recipe_file(*settings, name="passes"), "--gradient-accumulation-steps", "2"),
    }
    for process in runs.values():
        finish(process)
    folder = recipe_file(name="none").parent
    one = logged(folder / "one")
    assert len(one) == 20
    for other in ("two", "passes"):
        losses = logged(folder / other)
        assert max(abs(losses[step] - one[step]) / one[step] for step in one) < 1e-5
        for name in ("codebook/usage", "codebook/perplexity", "grad_norm/model"):
            assert logged(folder / other, name) == pytest.approx(logged(folder / "one", name), rel=1e-4)
        assert logged(folder / other, "validation/psnr")[20] == pytest.approx(
            logged(folder / "one", "validation/psnr")[20], abs=1e-3
        )


def test_a_run_goes_on_with_other_processes(recipe_file):
    """8 steps in one process, 8 in two: the samples and losses of 16 in one."""
    whole = start(recipe_file("optimizer.steps=16", name="whole"))
    finish(start(recipe_file("optimizer.steps=8", name="shared")))
    out = finish(start(recipe_file("optimizer.steps=16", name="shared"), processes=2))
    assert "continuing from" in out and "optimizer.steps 8 -> 16" in out
    finish(whole)
    folder = recipe_file(name="none").parent
    expected, found = logged(folder / "whole"), logged(folder / "shared")
    assert found == pytest.approx(expected, rel=1e-5)
