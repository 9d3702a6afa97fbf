"""What counts the steps of a run: a run in which the codebook was never used would measure nothing."""

import errno
from pathlib import Path

import pytest

from vfmtok.config import load_config, with_overrides
from vfmtok.errors import ConfigError
from vfmtok.training import run_folder
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.training.schedule import require_quantized_steps, shortened


@pytest.mark.parametrize(("continuous", "steps"), [(4, 4), (5, 4)])
def test_a_run_that_never_uses_its_codebook_is_refused(train, tiny_recipe, tmp_path, continuous, steps):
    recipe = tiny_recipe(f"optimizer.steps={steps}", f"codebook.continuous_steps={continuous}", name="refused")
    with pytest.raises(ConfigError, match=rf"the first {continuous} steps are without the codebook, and the run has 4"):
        train(recipe)
    assert not list(tmp_path.rglob("refused")), "a run that never began leaves no folder"


def test_a_folder_of_the_user_s_stays(train, tiny_recipe):
    recipe = tiny_recipe("optimizer.steps=4", "codebook.continuous_steps=4", name="refused")
    folder = Path(recipe.run.results_dir)
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match="without the codebook"):
        train(recipe)
    assert folder.is_dir()


def test_what_was_wrong_is_said_where_the_folder_cannot_be_removed(train, tiny_recipe, monkeypatch):
    """A folder on NFS keeps a file that is open, and one that is mounted stays."""

    def fail(folder):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(run_folder, "_remove_unused", fail)
    with pytest.raises(ConfigError, match="without the codebook"):
        train(tiny_recipe("optimizer.steps=4", "codebook.continuous_steps=4", name="refused"))


def test_by_epochs_too(train, tiny_recipe):
    """Whose length is known with the data only."""
    with pytest.raises(ConfigError, match="are without the codebook, and the run has"):
        train(tiny_recipe("optimizer.steps=null", "optimizer.epochs=1", "codebook.continuous_steps=1000"))


def test_one_step_with_the_codebook_is_a_run():
    require_quantized_steps(0, 1)
    require_quantized_steps(3, 4)


def test_what_never_came_is_not_moved_into_the_run(tiny_recipe):
    """A discriminator that starts after the end of the run stays out of a shorter one, too."""
    recipe = tiny_recipe("optimizer.steps=100", "optimizer.warmup_steps=10", "adversarial.start=100")
    assert shortened(recipe, 20, 100) == {"optimizer.steps": 20, "optimizer.warmup_steps": 2, "adversarial.start": 20}
    assert "adversarial.start" not in shortened(with_overrides(recipe, ["adversarial.start=101"]), 20, 100)


def test_a_single_step_uses_the_codebook(tiny_recipe):
    recipe = tiny_recipe("optimizer.steps=100", "codebook.continuous_steps=10")
    short = shortened(recipe, 1, 100)
    assert short["codebook.continuous_steps"] == 0
    require_quantized_steps(short["codebook.continuous_steps"], short["optimizer.steps"])


def test_a_warm_up_in_epochs_is_shortened(tiny_recipe):
    recipe = tiny_recipe("optimizer.steps=100", "optimizer.warmup_steps=null", "optimizer.warmup_epochs=2")
    assert shortened(recipe, 25, 100)["optimizer.warmup_epochs"] == 0.5


def test_times_of_losses_are_shortened(root):
    """VFM-VAE's multi-resolution losses take part in the first third of stage 0, in a short one too."""
    recipe = load_config(root / "configs/vfm_vae/emoji64_stage0.yaml", kind=TokenizerRecipe)
    assert (recipe.optimizer.steps, recipe.loss.terms[1].last_image) == (1200, 3199)  # of 8 images: the first 400 steps
    short = with_overrides(recipe, (), shortened(recipe, 120, 1200))
    assert [term.last_image for term in short.loss.terms] == [None, 319, 319, 319]


def test_an_annealing_to_the_end_of_the_run_still_fits(root):
    recipe = load_config(
        root / "configs/vfmtok/emoji64_rar.yaml",
        ["optimizer.steps=2400", "generator.anneal_start=1200", "generator.anneal_end=2400"],
        kind=GeneratorRecipe,
    )
    short = shortened(recipe, 240, 2400)
    assert (short["generator.anneal_start"], short["generator.anneal_end"]) == (120, 240)


def test_a_loss_of_a_short_while_keeps_a_step(tiny_recipe):
    row = "{name: ssim, weight: 1.0, first_step: 6, last_step: 6}"
    short = shortened(tiny_recipe("optimizer.steps=100", f"loss.terms=[{row}]"), 10, 100)
    assert (short["loss.terms.0.first_step"], short["loss.terms.0.last_step"]) == (1, 1)
