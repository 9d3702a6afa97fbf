"""What a study is, read from YAML like every configuration.

A row is a tokenizer's recipe and a generator's, each with changes ("section.field=value", as --set takes them). What a
row leaves out is the study's. The flags of the measuring steps are those of the commands that measure.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vfmtok.config import closest_match, load_config, require
from vfmtok.errors import ConfigError

CHECKOUT = Path(__file__).parents[2]  # where recipes and scripts lie


@dataclass(frozen=True)
class ColumnConfig:
    """A number of the table.

    Attributes:
        of: the step that finds it, "row" for what is known of the row itself (``facts.py``); None: only the paper has
            it at this scale.
        number: its name there: in results.json ("PSNR", "gFID (CFG 1.5)"; a * stands for anything, and the first that
            fits is taken), or of a training's last entry of it in log.jsonl ("validation/ema_loss"). None: the column's
            name.
        better: "neither": rows are not compared in it.
        digits: shown; what they round is kept in table.json.
    """

    name: str = ""
    of: Literal["row", "tokenizer", "reconstruction", "generator", "agreement", "generation"] | None = None
    number: str | None = None
    better: Literal["higher", "lower", "neither"] = "higher"
    digits: int = 2

    @property
    def key(self) -> str:
        return self.number or self.name


@dataclass(frozen=True)
class RowConfig:
    """A row of the table."""

    name: str = ""
    about: str = ""  # what it is, and what was decided where the paper is silent
    tokenizer: str | None = None  # recipe; None: the study's
    tokenizer_set: tuple[str, ...] = ()  # changes of it, after the study's
    weights: str | None = None  # instead of training one: what --vq-ckpt takes, with ``tokenizer`` as its configuration
    generator: str | None = None  # recipe; None: the study's
    generator_set: tuple[str, ...] = ()
    codes: str | None = None  # flags; None: the study's
    agreement: str | None = None
    generation: str | None = None
    published: dict[str, float] = field(default_factory=dict)  # column -> the paper's number


@dataclass(frozen=True)
class StudyConfig:
    """A table. ``data`` and recipes are paths from the working directory, or from the checkout of this package."""

    title: str = ""
    about: str = ""
    data: str = ""  # a folder made by `vfmtok prepare` with both splits; "sample": the images in the package
    seeds: tuple[int, ...] = (0,)
    tokenizer: str = ""  # recipe
    tokenizer_set: tuple[str, ...] = ()
    generator: str | None = None  # recipe; None: tokenizers only
    generator_set: tuple[str, ...] = ()
    codes: str = "--views flip"  # flags of `vfmtok codes`, for the training images
    held_out_codes: str = "--views center"
    reconstruction: str = ""  # flags of vqgan_test.py; {data} stands for the images
    agreement: str | None = None  # flags of `vfmtok agreement`; None: it is not measured
    generation: str | None = None  # flags of test_net.py; None: it is not measured
    compare: Literal["first", "previous"] = "first"  # with which row the others are compared
    columns: tuple[ColumnConfig, ...] = ()
    rows: tuple[RowConfig, ...] = ()

    def __post_init__(self):
        require(bool(self.rows), "rows", "must be one or more", "none")
        require(bool(self.tokenizer), "tokenizer", "must name a recipe", "nothing")
        require(bool(self.seeds) and len(set(self.seeds)) == len(self.seeds), "seeds", "must differ", self.seeds)
        columns = _unique("columns", [column.name for column in self.columns])
        _unique("rows", [row.name for row in self.rows])
        for row in self.rows:
            for name in row.published:
                if name not in columns:
                    hint = closest_match(name, columns)
                    raise ConfigError(f"row '{row.name}': published.{name}: there is no such column{hint}")
        for column in self.columns:
            measured = column.of not in ("agreement", "generation") or getattr(self, column.of) is not None
            require(measured, f"column '{column.name}'", f"needs the flags of {column.of}", "none")

    def chosen(self, names: Iterable[str]) -> list[RowConfig]:
        """Rows by name or number, counted from 1; without names all. Raises ConfigError."""
        found, by_name = [], {row.name: row for row in self.rows}
        for name in names:
            if name in by_name:
                found.append(by_name[name])
            elif name.isdecimal() and 1 <= int(name) <= len(self.rows):
                found.append(self.rows[int(name) - 1])
            else:
                known = "', '".join(by_name)
                raise ConfigError(f"there is no row '{name}'{closest_match(name, by_name)}; there are '{known}'")
        return found or list(self.rows)


def load_study(path: str | Path, overrides: Iterable[str] = ()) -> StudyConfig:
    """A study's file. Raises ConfigError naming the file and the key."""
    return load_config(path, overrides, kind=StudyConfig)


def found_file(name: str) -> Path:
    """A recipe as a study names it. Raises ConfigError."""
    for path in (Path(name).expanduser(), CHECKOUT / name):
        if path.is_file():
            return path
    raise ConfigError(f"there is no recipe {name}, neither here nor in {CHECKOUT}")


def _unique(key: str, names: list[str]) -> list[str]:
    for name in names:
        require(bool(name) and names.count(name) == 1, key, "need names that differ", f"'{name}'")
    return names
