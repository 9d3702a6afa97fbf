"""Typed configuration: read strictly from YAML, changed by flags, written back.

A configuration is a tree of frozen dataclasses, which lie beside what they configure. Where a section may be of several
kinds, its field is annotated with a union of dataclasses, each with a field ``kind``; the first is taken if a file
names none. An unknown key, a value of the wrong type or an impossible combination raises ``ConfigError`` with one line
that names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from vfmtok.errors import ConfigError

# --------------------------------------------------------------------------------------
# Reading and writing
# --------------------------------------------------------------------------------------

Config = TypeVar("Config")


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


def override_tree(tree: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``tree``, changed in place by ``"a.b=value"`` strings. Raises ConfigError."""
    _set_keys(tree, map(_parse_override, overrides))
    return tree


def read_tree(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file, not yet checked. Raises ConfigError if it can't be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read configuration {path}: {error}") from None
    tree = _parse_yaml(text, str(path))
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(tree).__name__}")
    return tree


def with_overrides(
    config: Config, overrides: Iterable[str] = (), values: Mapping[str, Any] = types.MappingProxyType({})
) -> Config:
    """``config`` changed by ``values`` ("a.b" -> value) and then by ``overrides`` (see ``load_config``).

    Raises ConfigError as ``load_config`` does.
    """
    tree = config_to_dict(config)
    _set_keys(tree, [*values.items(), *map(_parse_override, overrides)])
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
        return _build(_section_of_kind(kind, tree, ""), tree, prefix="")
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _with_pinned(tree: Any, kind: Any) -> Any:
    """``tree`` and, where it does not mention a field that its dataclass pins, that value."""
    if not isinstance(tree, Mapping):
        return tree
    kind = _section_of_kind(kind, tree, "")
    filled = kind.upgraded(dict(tree)) if hasattr(kind, "upgraded") else dict(tree)
    filled = kind.as_written(filled) if hasattr(kind, "as_written") else filled
    pinned, hints = getattr(kind, "PINNED", {}), typing.get_type_hints(kind)
    for name in (item.name for item in dataclasses.fields(kind)):
        is_list = typing.get_origin(hints[name]) is tuple  # of sections: none of them is pinned
        members = (None,) if is_list else typing.get_args(hints[name]) or (hints[name],)
        if name in pinned:
            filled.setdefault(name, pinned[name])
        optional = types.NoneType in members
        if dataclasses.is_dataclass(members[0]) and (name in filled or not optional):
            filled[name] = _with_pinned(filled.get(name, {}), members[0] if optional else hints[name])
    return filled


def _build(kind: type, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')} must be a section of keys and values, got {tree!r}")
    tree = kind.upgraded(dict(tree)) if hasattr(kind, "upgraded") else tree
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    values = {}
    for key, value in tree.items():
        if key not in names:
            raise ConfigError(f"unknown key '{prefix}{key}'{closest_match(str(key), names, prefix)}")
        values[key] = _convert(hints[key], value, f"{prefix}{key}")
    return kind(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """``value`` as the annotated type ``hint``, or ConfigError naming ``key``."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{key}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # X | None, or sections of several kinds
        if value is None and types.NoneType in arguments:
            return None
        if hasattr(arguments[0], "kind"):
            value = value.resolved(arguments[0].kind) if isinstance(value, _OfAnotherKind) else value
            return _build(_section_of_kind(hint, value, f"{key}."), value, f"{key}.")
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


def _section_of_kind(hint: Any, tree: Any, prefix: str) -> type:
    """The member of a union of dataclasses that ``tree["kind"]`` names, or the first; ``hint`` itself if it is none."""
    sections = {member.kind: member for member in typing.get_args(hint) if member is not types.NoneType}
    if not sections:
        return hint
    kind = tree.get("kind", next(iter(sections))) if isinstance(tree, Mapping) else next(iter(sections))
    if kind not in sections:
        choices = ", ".join(sections)
        raise ConfigError(f"{prefix}kind must be one of {choices}, got {kind!r}{closest_match(str(kind), sections)}")
    return sections[kind]


def _convert_float(value: Any, key: str) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 1e-4, without a dot, as text
        try:
            value = float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} must be a number, got {value!r}")
    return float(value)


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not all(key.strip().split(".")):
        raise ConfigError(f"--set takes key=value such as sampler.num_tokens=64, got '{override}'")
    return key.strip(), _parse_yaml(text, f"--set {override}")


def _set_keys(tree: dict, changes: Iterable[tuple[str, Any]]) -> None:
    """Kinds first: a section that becomes another kind begins with that kind's defaults."""
    for key, value in sorted(changes, key=lambda change: not change[0].endswith(".kind")):
        _set_key(tree, key, value)


def _set_key(tree: dict, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for depth, section in enumerate(sections, start=1):
        if tree.get(section) is None:  # an optional section that is left out so far
            tree[section] = {}
        above, tree = tree, tree[section]
        if not isinstance(tree, dict):
            raise ConfigError(f"cannot set {key}: '{'.'.join(sections[:depth])}' is a value, not a section")
    if name == "kind" and sections:
        tree = above[sections[-1]] = _OfAnotherKind(tree)
    tree[name] = value


class _OfAnotherKind(dict):
    """A section whose ``kind`` was set by an override: what the file says of the kind it had is left out.

    The file need not name that kind, where it is the default; so which one it was is seen when the section is built.
    """

    def __init__(self, tree: Mapping[str, Any]):
        super().__init__()
        self.of_file = dict(tree)

    def resolved(self, default: str) -> dict[str, Any]:
        return {**self.of_file, **self} if self.of_file.get("kind", default) == self["kind"] else dict(self)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; a configuration must not."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


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
