"""Typed configuration: read strictly from YAML, changed by flags, written back.

A configuration is a tree (``vfmtok/trees.py``) of frozen dataclasses, which lie beside what they configure. Where a
section may be of several kinds, its field is annotated with a union of dataclasses, each with a field ``kind``, or with
a table of them (``Kinds``); the first is taken if a file names none. An unknown key, a value of the wrong type or an
impossible combination raises ``ConfigError`` with one line that names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from vfmtok.errors import ConfigError
from vfmtok.trees import AnotherKind, override_tree, parse_override, read_tree, set_keys

# --------------------------------------------------------------------------------------
# Reading and writing
# --------------------------------------------------------------------------------------

Config = TypeVar("Config")


class Kinds:
    """The note of ``Annotated[Any, Kinds(...)]``: a section of any kind that a table has, its later rows included.

    Args:
        members: gives the dataclasses, each with a field ``kind``; the first is the default.
    """

    def __init__(self, members: Callable[[], Iterable[type]]):
        self.members = members


def sections_of(hint: Any) -> tuple[type, ...]:
    """The dataclasses that what is annotated ``hint`` may be, the default first; none of a plain value."""
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Kinds):
            return tuple(note.members())
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return tuple(
        member for member in (typing.get_args(hint) if is_union else (hint,)) if dataclasses.is_dataclass(member)
    )


def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, as ``sections_of`` takes them."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


def load_config(path: str | Path, overrides: Iterable[str] = (), *, kind: type[Config]) -> Config:
    """Read a YAML file into a configuration.

    Args:
        path: the YAML file; keys it leaves out take their defaults.
        overrides: ``"a.b=value"`` strings (the ``--set`` flag), applied in order; values are YAML.
        kind: the dataclass to fill, or a union of such with a field ``kind`` each.

    Raises:
        ConfigError: the file can't be read, a key is unknown (the message names the closest
            match), a value has the wrong type or is not allowed.
    """
    return config_from_dict(override_tree(read_tree(path), overrides), kind, source=str(path))


def with_overrides(
    config: Config, overrides: Iterable[str] = (), values: Mapping[str, Any] = types.MappingProxyType({})
) -> Config:
    """``config`` changed by ``values`` ("a.b" -> value) and then by ``overrides`` (see ``load_config``).

    Raises ConfigError as ``load_config`` does.
    """
    tree = config_to_dict(config)
    set_keys(tree, [*values.items(), *map(parse_override, overrides)])
    return config_from_dict(tree, type(config))


def save_config(config: Any, path: str | Path) -> None:
    """Write a configuration as YAML that ``load_config`` reads back to an equal object."""
    Path(path).write_text(dump_config(config), encoding="utf-8")


def dump_config(config: Any) -> str:
    """The YAML text of a configuration, every field written out."""
    return yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain dicts, lists and scalars (tuples become lists), ready for YAML or JSON."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def config_from_dict(
    tree: Mapping[str, Any], kind: type[Config], source: str = "configuration", saved: bool = False
) -> Config:
    """Fill the dataclass ``kind`` from nested mappings, strictly.

    A dataclass that once had other keys translates them in a class method ``upgraded(tree) -> tree``. One that once
    admitted more says in ``as_written(tree) -> tree``, of trees that this program wrote, what was meant by it.

    Args:
        saved: the tree was written by this program, every field of its day written out. A field that it lacks is newer
            and stands at what the dataclass pins it at (``PINNED``, see weights/hashing.py), whatever its default is.

    Raises ConfigError.
    """
    try:
        if saved:
            tree = _with_pinned(tree, kind)
        return _build(*_section(kind, tree, ""), prefix="")
    except _UnknownKey as error:
        raise ConfigError(f"{source}: {error}{_closest_key(error, kind)}") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _with_pinned(tree: Any, kind: Any) -> Any:
    """``tree`` and, where it does not mention a field that its dataclass pins, that value."""
    if not isinstance(tree, Mapping):
        return tree
    kind, tree = _section(kind, tree, "")
    filled = kind.upgraded(dict(tree)) if hasattr(kind, "upgraded") else dict(tree)
    filled = kind.as_written(filled) if hasattr(kind, "as_written") else filled
    pinned = getattr(kind, "PINNED", {})
    for name, hint in hints_of(kind).items():
        if name in pinned:
            filled.setdefault(name, pinned[name])
        if sections_of(hint) and (name in filled or types.NoneType not in typing.get_args(hint)):
            filled[name] = _with_pinned(filled.get(name, {}), hint)
    return filled


def _build(kind: type, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')} must be a section of keys and values, got {tree!r}")
    tree = kind.upgraded(dict(tree)) if hasattr(kind, "upgraded") else tree
    hints, values = hints_of(kind), {}
    for key, value in tree.items():
        if key not in hints:
            raise _UnknownKey(prefix, str(key), list(hints))
        values[key] = _convert(hints[key], value, f"{prefix}{key}")
    return kind(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """``value`` as the annotated type ``hint``, or ConfigError naming ``key``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if value is None and types.NoneType in arguments:
        return None
    if sections_of(hint):
        return _build(*_section(hint, value, f"{key}."), f"{key}.")
    if origin in (types.UnionType, typing.Union):  # X | None
        return _convert(arguments[0], value, key)
    if origin is Literal:
        if value not in arguments:
            choices = ", ".join(map(str, arguments))
            raise ConfigError(f"{key} must be one of {choices}, got {value!r}{closest_match(str(value), arguments)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} must be a list, got {value!r}")
        return tuple(_convert(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:  # of names that no dataclass lists
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} must be a section of keys and values, got {value!r}")
        return {
            _convert(arguments[0], name, key): _convert(arguments[1], v, f"{key}.{name}") for name, v in value.items()
        }
    if hint is float:
        return _convert_float(value, key)
    if type(value) is not hint:  # exact: True is no int
        raise ConfigError(f"{key} must be {hint.__name__}, got {value!r}")
    return value


def _section(hint: Any, tree: Any, prefix: str) -> tuple[type, Any]:
    """Of the dataclasses that ``hint`` admits the one that ``tree["kind"]`` names, or the first; and its keys."""
    first, *others = sections_of(hint)
    default = getattr(first, "kind", None)
    if isinstance(tree, AnotherKind):
        tree = tree.resolved(default)
    if not others:
        return first, tree
    sections = {member.kind: member for member in (first, *others)}
    kind = tree.get("kind", default) if isinstance(tree, Mapping) else default
    if not isinstance(kind, str) or kind not in sections:
        choices = ", ".join(sections)
        raise ConfigError(f"{prefix}kind must be one of {choices}, got {kind!r}{closest_match(str(kind), sections)}")
    return sections[kind], tree


class _UnknownKey(ConfigError):
    def __init__(self, prefix: str, key: str, known: list[str]):
        super().__init__(f"unknown key '{prefix}{key}'")
        self.prefix, self.key, self.known = prefix, key, known


def _closest_key(error: _UnknownKey, kind: Any) -> str:
    """Another section's key of this very name is meant rather than this section's key of a similar one."""
    paths = sorted(_paths(kind), key=lambda path: path.count("."))
    same = next((path for path in paths if path.rpartition(".")[2] == error.key), None)
    return closest_match(error.key, error.known, error.prefix) if same is None else f" (closest match: '{same}')"


def _paths(hint: Any, prefix: str = "") -> Iterator[str]:
    """Every key ("a.b") of a configuration, of all kinds that its sections may be."""
    for section in sections_of(hint):
        for name, of_field in hints_of(section).items():
            yield f"{prefix}{name}"
            yield from _paths(of_field, f"{prefix}{name}.")


def _convert_float(value: Any, key: str) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 1e-4, without a dot, as text
        try:
            value = float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} must be a number, got {value!r}")
    return float(value)


class _Dumper(yaml.SafeDumper):
    """Lists on one line: ``levels: [6, 12, 18, 24]``."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)

# --------------------------------------------------------------------------------------
# Checks of values: a ConfigError in one line, "key rule, got value"
# --------------------------------------------------------------------------------------


def require_positive(config: Any, section: str, *names: str) -> None:
    """Raise ConfigError unless these fields are finite and above 0."""
    for name in names:
        value = getattr(config, name)
        require(0 < value < math.inf, f"{section}.{name}".lstrip("."), "must be positive", value)


def require_not_negative(config: Any, section: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(0 <= value < math.inf, f"{section}.{name}".lstrip("."), "must be a number from 0", value)


def require_share(value: float, key: str) -> None:
    require(0 <= value < 1, key, "must be in [0,1)", value)


def require(condition: bool, key: str, rule: str, value: Any) -> None:
    """Raise ConfigError, "key rule, got value", unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key} {rule}, got {value}")


def closest_match(word: str, choices: Iterable[Any], prefix: str = "") -> str:
    """A hint for a message about an unknown name: " (closest match: 'name')", or nothing."""
    match = difflib.get_close_matches(word, [str(choice) for choice in choices], n=1, cutoff=0.3)
    return f" (closest match: '{prefix}{match[0]}')" if match else ""
