"""Numbers with their protocols, as lines for people and as JSON; and the warnings that belong to them."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vfmtok.errors import EvaluationError
from vfmtok.metrics.frechet import RankDeficientWarning


@dataclass(frozen=True)
class Number:
    """A result: what it is called, its value, and how it was measured."""

    name: str
    value: float
    protocol: str
    digits: int = 3  # printed; the JSON file keeps all


def as_lines(title: str, results: dict[str, Any]) -> list[str]:
    """The results as they are printed: a line for every number, then warnings and notes."""
    numbers = results["numbers"]
    width = max((len(name) for name in numbers), default=0)
    lines = [title]
    for name, entry in numbers.items():
        value = "none" if entry["value"] is None else f"{entry['value']:.{entry['digits']}f}"
        lines.append(f"  {name:<{width}}  {value:>10}  {entry['protocol']}")
    if checked := results.get("samples"):
        low, high = checked["labels_per_class"]
        lines.append(
            f"  checked: {checked['count']:,} samples, {checked['classes']:,} classes with {low} to {high} each"
            + (f" ({empty:,} without any)" if (empty := checked["classes_without_samples"]) else "")
        )
    lines += [f"  WARNING: {text}" for text in results["warnings"]]
    return lines + [f"  note: {text}" for text in results["notes"]]


def as_tree(numbers: list[Number]) -> dict[str, dict[str, Any]]:
    """By name what a JSON file keeps. JSON has no infinity and no NaN: such values become null."""
    return {
        n.name: {"value": n.value if math.isfinite(n.value) else None, "protocol": n.protocol, "digits": n.digits}
        for n in numbers
    }


def not_finite(numbers: list[Number]) -> list[str]:
    """A warning for each number that is infinite or NaN."""
    return [f"{n.name} is {n.value}" for n in numbers if not math.isfinite(n.value)]


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The texts of the metrics' warnings raised meanwhile, which then belong into the results, not beside them."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RankDeficientWarning)
        yield texts
    for warning in caught:
        if issubclass(warning.category, RankDeficientWarning):
            texts.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@dataclass
class Measured:
    """Empty in all processes but the first."""

    numbers: list[Number] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, compute: Callable[[], float], protocol: str) -> None:
        """The number, with what it warns of; or a warning that there is none."""
        try:
            with collected_warnings() as found:
                number = Number(name, compute(), protocol)
        except EvaluationError as error:
            self.warnings.append(f"{name} is left out: {error}")
        else:
            self.numbers.append(number)
            self.warnings += found
