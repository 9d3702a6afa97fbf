"""What counts the steps of a run: a run in which the codebook was never used would measure nothing."""

import pytest

from vfmtok.errors import ConfigError
from vfmtok.training.schedule import require_quantized_steps, shortened


@pytest.mark.parametrize(("continuous", "steps"), [(4, 4), (5, 4)])
def test_a_run_that_never_uses_its_codebook_is_refused(train, tiny_recipe, tmp_path, continuous, steps):
    recipe = tiny_recipe(f"optimizer.steps={steps}", f"codebook.continuous_steps={continuous}", name="refused")
    with pytest.raises(ConfigError, match=rf"the first {continuous} steps are without the codebook, and the run has 4"):
        train(recipe)
    assert not list(tmp_path.rglob("refused")), "a run that never began leaves no folder"


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
    assert shortened(recipe, 20, 100) == {"optimizer.steps": 20, "optimizer.warmup_steps": 2}
