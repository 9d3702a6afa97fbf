"""What a run computes does not depend on how it is cut, shared or accumulated."""

import signal

import pytest
from training_runs import assert_same, final, finish, killed_again_and_again, last_step, logged, start

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


def resumed_and_whole_agree(recipe_file, kills: int, seed: int) -> list[int]:
    """A run that is killed again and again and then ends, and one that just runs."""
    endless = recipe_file(*EVERYTHING, "optimizer.steps=100000", name="cut")
    folder = endless.parent / "cut"
    ends = killed_again_and_again(lambda: start(endless), folder, kills, seed)
    steps = last_step(folder) + 8
    runs = [start(recipe_file(*EVERYTHING, f"optimizer.steps={steps}", name=name)) for name in ("cut", "whole")]
    assert "continuing from" in finish(runs[0])
    finish(runs[1])
    assert_same(final(endless.parent / "whole", steps), final(folder, steps))
    assert logged(endless.parent / "whole") == logged(folder)
    return ends


def test_killed_runs_end_with_the_same_weights(recipe_file):
    assert resumed_and_whole_agree(recipe_file, kills=2, seed=0) == [-signal.SIGKILL, 0]


@pytest.mark.slow
def test_twenty_kills(recipe_file):
    assert len(resumed_and_whole_agree(recipe_file, kills=20, seed=1)) == 20


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


def test_two_processes_agree_with_a_discriminator(recipe_file):
    """Statistics of its batch norm, LeCam's anchors and the adaptive weight are those of the global batch."""
    settings = (
        "optimizer.steps=6", "adversarial.discriminator=patchgan", "adversarial.start=2", "adversarial.update_start=1",
        "adversarial.lecam_weight=0.1", "adversarial.adaptive_weight=true",
    )  # fmt: skip
    runs = [start(recipe_file(*settings, name=name), processes=n) for n, name in enumerate(("one", "two"), start=1)]
    for process in runs:
        finish(process)
    one, two = (recipe_file(name="none").parent / name for name in ("one", "two"))
    names = ("total", "adversarial", "discriminator", "lecam")
    for name, steps in zip((f"loss/{name}" for name in names), (6, 4, 5, 5), strict=True):
        expected = logged(one, name)
        assert logged(two, name) == pytest.approx(expected, rel=1e-4) and len(expected) == steps
    assert logged(one, "loss/lecam")[6] > 0
    assert logged(two, "grad_norm/discriminator") == pytest.approx(logged(one, "grad_norm/discriminator"), rel=1e-3)


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
