"""What a recipe counts in steps from the beginning of a run: shortened together, and checked to fit."""

from typing import Any

from vfmtok.errors import ConfigError

FIELDS = (
    "optimizer.warmup_steps",
    "codebook.continuous_steps",
    "adversarial.start",
    "adversarial.update_start",
    "second_adversarial.start",
    "second_adversarial.update_start",
    "generator.uniform_from_step",
    "generator.anneal_start",
    "generator.anneal_end",
)


def shortened(recipe: Any, steps: int, in_full: int) -> dict[str, int]:
    """The settings of a run of ``steps``, where the recipe makes ``in_full``: "optimizer.steps", and in proportion
    every other step that comes before its end. The first and last steps of rows of ``loss.terms`` stay as they are."""
    found = {"optimizer.steps": steps}
    for path in FIELDS:
        section, name = path.split(".")
        count = getattr(getattr(recipe, section, None), name, None)
        if count and count < in_full:
            found[path] = max(1, round(count * steps / in_full))
    return found


def require_quantized_steps(continuous_steps: int, steps: int) -> None:
    """Raise ConfigError if a run ended before its codebook was ever used: its ids would mean nothing."""
    if continuous_steps >= steps:
        raise ConfigError(
            f"codebook.continuous_steps: the first {continuous_steps} steps are without the codebook, and the run has "
            f"{steps}: give fewer (vq_train.py --steps {steps} shortens the recipe as a whole)"
        )
