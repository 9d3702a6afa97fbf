"""The recipes of every row, checked before anything is trained."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vfmtok.code import Code, check_fits
from vfmtok.config import config_from_dict, override_tree, read_tree, with_overrides
from vfmtok.errors import ConfigError
from vfmtok.study.config import RowConfig, StudyConfig, found_file
from vfmtok.study.facts import FACTS
from vfmtok.tokenizers import load_config
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.training.schedule import require_quantized_steps

# Of the measuring steps, by the field that has their flags: argparse parsers with ``worded(message)``, what is said of
# a mistake.
Parsers = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Row:
    """A row with its recipes. ``recipe`` is None where weights are given, ``generator`` without one."""

    config: RowConfig
    tokenizer: Any  # its configuration
    recipe: TokenizerRecipe | None
    generator: GeneratorRecipe | None
    codes: str  # flags
    agreement: str | None
    generation: str | None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def code(self) -> Code:
        return self.tokenizer.code

    @property
    def learns_from_images(self) -> bool:
        """Whether its generator is trained on images, and not on a cache of their codes."""
        return self.generator is not None and getattr(self.generator.generator, "learns_from_images", False)


@dataclass(frozen=True)
class Changes:
    """Of a command line, for all rows and after what the rows say."""

    tokenizer: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()


def resolve(study: StudyConfig, parsers: Parsers, changes: Changes = Changes()) -> list[Row]:
    """Every row. Raises ConfigError naming the row and the key: what is wrong is found before the first training."""
    for column in study.columns:
        if column.of == "row" and column.key not in FACTS:
            raise ConfigError(f"column '{column.name}': of a row there are {', '.join(FACTS)}, not {column.key}")
    for name in ("codes", "held_out_codes", "reconstruction", "agreement", "generation"):
        if getattr(study, name) is not None:
            with _named(name):
                _check_flags(getattr(study, name), parsers[name])
    return [_row(study, row, parsers, changes) for row in study.rows]


def _row(study: StudyConfig, row: RowConfig, parsers: Parsers, changes: Changes) -> Row:
    file, said = row.tokenizer or study.tokenizer, (*study.tokenizer_set, *row.tokenizer_set, *changes.tokenizer)
    with _named(f"row '{row.name}'"):
        with _named(f"tokenizer {file}"):
            recipe = None
            if row.weights is None:
                recipe = with_overrides(load_config(found_file(file), kind=TokenizerRecipe), said)
                if recipe.optimizer.steps is not None:
                    require_quantized_steps(recipe.codebook.continuous_steps, recipe.optimizer.steps)
                tokenizer = recipe.tokenizer
            else:
                tokenizer = load_config(found_file(file), [text for text in said if text.startswith("tokenizer.")])
            code = tokenizer.code
        generator, file = None, row.generator or study.generator
        if file is not None:
            with _named(f"generator {file}"):
                said = (*study.generator_set, *row.generator_set, *changes.generator)
                generator = _generator(file, said, code)
        flags = {}
        for name in ("codes", "agreement", "generation"):
            flags[name] = getattr(study if getattr(row, name) is None else row, name)
            if flags[name] is not None:
                with _named(name):
                    _check_flags(flags[name], parsers[name])
    return Row(row, tokenizer, recipe, generator, **flags)


def _generator(file: str, said: tuple[str, ...], code: Code) -> GeneratorRecipe:
    """The recipe of a generator of this code. Raises ConfigError where it says itself that it is one of another."""
    tree = GeneratorRecipe.upgraded(override_tree(read_tree(found_file(file)), said))
    family = type(config_from_dict(tree, GeneratorRecipe, file).generator)
    tree["generator"] = {**family.fields_of_code(code), **tree.get("generator", {})}
    recipe = config_from_dict(tree, GeneratorRecipe, file)
    check_fits(recipe.generator.code, code, "the tokenizer")
    paths = dict.fromkeys(("code_path", "val_code_path", "path", "val_path", "vq_ckpt", "vq_config"))
    return replace(recipe, data=replace(recipe.data, **paths))  # the study says which


def _check_flags(text: str, parser: Callable[[], Any]) -> None:
    """Raise ConfigError if the command would not take these flags. What it needs besides is given by the study."""
    checked = parser()

    def fail(message: str):
        raise ConfigError(checked.worded(message))

    checked.error = fail
    for action in checked._actions:  # such as --vq-ckpt
        action.required = False
    checked.parse_args(split(text, {}))


def split(flags: str, values: dict[str, str]) -> list[str]:
    """Flags as words, with ``{name}`` replaced by its value. Raises ConfigError."""
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise ConfigError(f"'{flags}': {error}") from None
    for name, value in values.items():
        words = [word.replace(f"{{{name}}}", value) for word in words]
    return words


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None
