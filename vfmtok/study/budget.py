"""What the steps of a study will take here, and shorter trainings that fit a number of minutes."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vfmtok.errors import ConfigError
from vfmtok.study.speed import Speed, steps_of
from vfmtok.study.steps import Data, Step
from vfmtok.training.schedule import shortened

LEAST = 0.02  # below this share of its steps a training learns nothing worth having


@dataclass(frozen=True)
class Forecast:
    """
    Attributes:
        seconds: that the steps of the study take, as they are shortened.
        minutes: that were asked for; None: nothing is shortened.
        share: of their steps that trainings make.
        trainings: of each its kind, its recipe's steps, and the settings ("section.field=value") of a shorter one.
    """

    seconds: float
    minutes: float | None
    share: float
    trainings: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def forecast(
    steps: list[Step],
    seconds: Callable[[Step], float | None],
    speeds: Callable[[Step], Speed],
    data: Data,
    minutes: float | None = None,
) -> Forecast:
    """Of these steps of a study. What is not training takes as long as it takes.

    Args:
        seconds: of a step, as it is; None where nothing is known, which counts as nothing.
        minutes: that all may take. More than they need changes nothing.

    Raises:
        ConfigError: too few minutes.
    """
    trainings = [step for step in steps if step.is_training]
    learning = sum(steps_of(s, data) * s.recipe.run.global_batch / speeds(s).samples_per_second for s in trainings)
    rest = sum(seconds(step) or 0.0 for step in steps) - learning
    share = 1.0 if minutes is None or not trainings else min(1.0, (60 * minutes - rest) / learning)
    if share < LEAST:
        least = (rest + LEAST * learning) / 60
        whole = (rest + learning) / 60
        raise ConfigError(
            f"too few minutes: {minutes:.1f} are left, and here it takes {least:.1f} at the least, {whole:.1f} in full"
        )
    found = [{"kind": s.kind, "steps": steps_of(s, data), "set": settings_of(s, share, data)} for s in trainings]
    return Forecast(rest + share * learning, minutes, share, found)


def settings_of(step: Step, share: float, data: Data) -> list[str]:
    """Of a training that makes this share of its steps: "optimizer.steps=300", ...; none for all of them."""
    if share == 1:
        return []
    steps = steps_of(step, data)
    found = shortened(step.recipe, max(1, round(share * steps)), steps)
    return [f"{path}={count}" for path, count in found.items()]
