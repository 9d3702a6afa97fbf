"""What the steps found, gathered in a table: mean, spread over the seeds, and which differences are noise.

Seeds differ in everything that depends on chance: first weights, order and crops of the images, sampling. The spread of
one row over two or three seeds says little, but that of all rows together says how much the numbers of a column vary:
its standard deviation is pooled over the rows. A difference of two means is called noise where it is less than what
such a deviation explains in 19 of 20 cases (Student's t, two-sided).
"""

import json
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

from vfmtok.errors import VFMTokError
from vfmtok.files import read_json
from vfmtok.pictures.curves import read_log
from vfmtok.study.config import ColumnConfig, StudyConfig
from vfmtok.study.facts import FACTS
from vfmtok.study.steps import Asked, Plan, Step

# Two-sided 95% of Student's t by degrees of freedom 1 ... 30; beyond, the normal's 1.96 is near enough.
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A number of a row: by seed, of the seeds that have it; and what it is beside the row it is compared with."""

    values: dict[int, float]
    published: float | None
    protocol: str = ""
    beside: str = ""  # "better", "worse", "noise", "unknown" (one seed each); "" without a comparison

    @property
    def mean(self) -> float | None:
        return fmean(self.values.values()) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        cells: row -> column -> cell.
        noise: column -> the standard deviation of a number over seeds, pooled over the rows; None with one seed each.
        compared: row -> the row that it is compared with, or None.
        asked: the command line.
    """

    study: StudyConfig
    cells: dict[str, dict[str, Cell]]
    noise: dict[str, float | None]
    compared: dict[str, str | None]
    asked: Asked

    def as_tree(self) -> dict[str, Any]:
        rows = {}
        for name, cells in self.cells.items():
            rows[name] = {"compared with": self.compared[name], "numbers": {}}
            for column, cell in cells.items():
                by_seed = {str(seed): value for seed, value in cell.values.items()}
                facts = {"mean": cell.mean, "spread": cell.spread, "by seed": by_seed, "published": cell.published}
                rows[name]["numbers"][column] = {**facts, "beside": cell.beside, "protocol": cell.protocol}
        changes = self.asked.changes
        return {
            "title": self.study.title, "command": self.asked.command, "seeds": list(self.study.seeds),
            "set": list(self.asked.overrides),
            "tokenizer_set": [*self.study.tokenizer_set, *changes.tokenizer],
            "generator_set": [*self.study.generator_set, *changes.generator],
            "noise": self.noise, "rows": rows,
        }  # fmt: skip

    def as_markdown(self) -> str:
        """A table of ours, mean ± spread, with the paper's numbers in brackets."""
        columns = self.study.columns
        lines = [["row", *(column.name for column in columns)], ["---"] * (len(columns) + 1)]
        for name, cells in self.cells.items():
            lines.append([name, *(in_words(cells[column.name], column) for column in columns)])
        return "\n".join("| " + " | ".join(text.replace("|", "/") for text in line) + " |" for line in lines) + "\n"


SIGNS = {"better": " ▲", "worse": " ▼", "noise": " ≈", "unknown": "", "": ""}


def in_words(cell: Cell, column: ColumnConfig) -> str:
    """ "18.20 ± 0.11 ≈ [0.95]": ours, the spread, how it compares, the paper's."""
    text = ours_in_words(cell, column)
    return text if cell.published is None else f"{text} [{cell.published:g}]"


def ours_in_words(cell: Cell, column: ColumnConfig) -> str:
    """The same without the paper's number."""
    text = "-" if cell.mean is None else f"{cell.mean:.{column.digits}f}"
    if cell.spread is not None:
        text += f" ± {cell.spread:.{column.digits}f}"
    return text + SIGNS[cell.beside]


def gather(plan: Plan) -> Table:
    """What there is so far. Raises VFMTokError: a result is damaged."""
    study, rows, found = plan.study, {row.name: row for row in plan.rows}, {}
    for row in study.rows:
        for column in study.columns:
            values, protocol, seen = {}, "", set()
            for seed in study.seeds:
                steps = plan.by_row[row.name, seed]
                if column.of == "row":
                    key, fact = seed, FACTS[column.key]
                    value, said = fact.of(rows[row.name], steps), fact.about
                else:
                    step = steps.get(column.of)
                    key, (value, said) = step and step.key, _read(step, column)
                if value is not None and key not in seen:  # given weights are the same for all seeds
                    seen.add(key)
                    values[seed], protocol = value, said
            found[row.name, column.name] = Cell(values, row.published.get(column.name), protocol)
    noise = {c.name: pooled_deviation([found[r.name, c.name].values for r in study.rows]) for c in study.columns}
    names, cells, compared = [row.name for row in study.rows], {}, {}
    for number, name in enumerate(names):
        other = None if number == 0 else names[0 if study.compare == "first" else number - 1]
        compared[name], cells[name] = other, {}
        for column in study.columns:
            cell = found[name, column.name]
            beside = "" if other is None else compare(cell, found[other, column.name], column, noise[column.name])
            cells[name][column.name] = Cell(cell.values, cell.published, cell.protocol, beside)
    return Table(study, cells, {name: part and part[0] for name, part in noise.items()}, compared, plan.asked)


def pooled_deviation(rows: list[dict[int, float]]) -> tuple[float, int] | None:
    """The standard deviation over seeds, pooled over rows, and its degrees of freedom; None without two seeds."""
    several = [list(values.values()) for values in rows if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return None
    return math.sqrt(sum((len(v) - 1) * variance(v) for v in several) / freedom), freedom


def compare(cell: Cell, other: Cell, column: ColumnConfig, noise: tuple[float, int] | None) -> str:
    """How a row's number is beside another's: see ``Cell.beside``."""
    if not cell.values or not other.values or column.better == "neither":
        return ""
    if noise is None:
        return "unknown"
    deviation, freedom = noise
    allowed = t95(freedom) * deviation * math.sqrt(1 / len(cell.values) + 1 / len(other.values))
    difference = cell.mean - other.mean
    if abs(difference) <= allowed:
        return "noise"
    return "better" if (difference > 0) == (column.better == "higher") else "worse"


def t95(freedom: int) -> float:
    return T95[freedom - 1] if freedom <= len(T95) else 1.96


def _read(step: Step | None, column: ColumnConfig) -> tuple[float | None, str]:
    """A number of a finished step, and its protocol."""
    if step is None or not step.done:
        return None, ""
    if step.is_training:
        log = read_log(step.out)
        if column.key not in log:
            return None, ""
        return log[column.key][1][-1], f"{column.key}, the last of the training's log"
    for file in result_files(step.out):
        for name, entry in _numbers(file).items():
            if fnmatchcase(name, column.key):
                return entry["value"], f"{name}: {entry['protocol']}"
    return None, ""


def result_files(out: Path) -> list[Path]:
    """results.json of a step: one, or one for every guidance scale."""
    return [path for path in [out / "results.json", *sorted(out.glob("*/results.json"))] if path.is_file()]


def _numbers(path: Path) -> dict[str, Any]:
    try:
        return (read_json(path) or {})["numbers"]
    except KeyError:
        raise VFMTokError(f"{path} holds no numbers: delete its folder and run again") from None


def dump(table: Table) -> str:
    return json.dumps(table.as_tree(), indent=1, ensure_ascii=False) + "\n"
