"""What a recipe counts from the beginning of a run, in steps or images: shortened together, and checked to fit."""

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


def shortened(recipe: Any, steps: int, in_full: int) -> dict[str, Any]:
    """The settings of a run of ``steps``, where the recipe makes ``in_full``: "optimizer.steps", and in proportion
    every other time of the recipe that does not lie beyond its end. Intervals (of validations, ...) are no times, and
    ``loss.jump_from_image``, a safeguard of the first images, stays."""
    found: dict[str, Any] = {"optimizer.steps": steps}
    for path in FIELDS:
        section, name = path.split(".")
        count = getattr(getattr(recipe, section, None), name, None)
        if count and count <= in_full:
            found[path] = steps if count == in_full else min(max(1, round(count * steps / in_full)), steps - 1)
    optimizer = recipe.optimizer
    if optimizer.warmup_steps is None and optimizer.warmup_epochs:
        found["optimizer.warmup_epochs"] = optimizer.warmup_epochs * steps / in_full
    images = recipe.run.global_batch
    for index, term in enumerate(getattr(getattr(recipe, "loss", None), "terms", ())):
        for unit, length in (("step", 1), ("image", images)):
            first, last = getattr(term, f"first_{unit}") or 0, getattr(term, f"last_{unit}")  # both are included
            begin = round(first * steps / in_full)
            if 0 < first <= in_full * length:
                found[f"loss.terms.{index}.first_{unit}"] = begin
            if last is not None and last < in_full * length:
                found[f"loss.terms.{index}.last_{unit}"] = max(begin, round((last + 1) * steps / in_full) - 1)
    return found


def require_quantized_steps(continuous_steps: int, steps: int) -> None:
    """Raise ConfigError if a run ended before its codebook was ever used: its ids would mean nothing."""
    if continuous_steps >= steps:
        raise ConfigError(
            f"codebook.continuous_steps: the first {continuous_steps} steps are without the codebook, and the run has "
            f"{steps}: give fewer (to shorten a longer recipe use vq_train.py --steps {steps}, which shortens them too)"
        )
