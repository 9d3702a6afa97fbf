"""Trees of keys and values: read from YAML, changed by ``--set``, not yet checked (that is ``vfmtok/config.py``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vfmtok.errors import ConfigError


def override_tree(tree: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``tree``, changed in place by ``"a.b=value"`` strings. Raises ConfigError."""
    set_keys(tree, map(parse_override, overrides))
    return tree


def override_section(section: dict[str, Any], name: str, overrides: Iterable[str], default: str) -> dict[str, Any]:
    """A model's section, changed by ``"a.b=value"`` strings with or without the prefix ``name``. Raises ConfigError.

    Args:
        default: the kind of a section that names none.
    """
    tree, prefix, changes = {name: section}, f"{name}.", map(parse_override, overrides)
    set_keys(tree, [(key if key == name else prefix + key.removeprefix(prefix), value) for key, value in changes])
    return tree[name].resolved(default) if isinstance(tree[name], AnotherKind) else tree[name]


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


def parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not all(key.strip().split(".")):
        raise ConfigError(f"--set takes section.field=value, got '{override}'")
    return key.strip(), _parse_yaml(text, f"--set {override}")


def set_keys(tree: dict, changes: Iterable[tuple[str, Any]]) -> None:
    """Whole sections first, from the top down, and their kinds: one that becomes another kind has its defaults."""

    def place(change: tuple[str, Any]) -> tuple[float, int]:
        depth = change[0].count(".")  # of the section that the key is in
        if depth and change[0].endswith(".kind"):
            return depth, 1
        return (depth + 1, 0) if isinstance(change[1], Mapping) else (math.inf, 0)

    for key, value in sorted(changes, key=place):
        _set_key(tree, key, value)


def _set_key(tree: dict, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for depth, section in enumerate(sections, start=1):
        place: str | int = section
        if isinstance(tree, list):  # of rows, by their number from 0: loss.terms.1.weight
            if not (section.isdecimal() and int(section) < len(tree)):
                rows = f"'{'.'.join(sections[: depth - 1])}' has {len(tree)} rows, counted from 0"
                raise ConfigError(f"cannot set {key}: {rows}, and no '{section}'")
            place = int(section)
        elif tree.get(section) is None:  # an optional section that is left out so far
            tree[section] = {}
        above, tree = tree, tree[place]
        if not isinstance(tree, dict | list):
            raise ConfigError(f"cannot set {key}: '{'.'.join(sections[:depth])}' is a value, not a section")
    if isinstance(tree, list):
        found = f"'{'.'.join(sections)}' is a list"
        raise ConfigError(f"cannot set {key}: {found}: name a field of one of its rows, or all")
    if name == "kind" and sections:
        tree = above[place] = AnotherKind(tree.of_file if isinstance(tree, AnotherKind) else tree)
    tree[name] = value


class AnotherKind(dict):
    """A section whose ``kind`` was set by an override: what the file says of the kind it had is left out.

    The file need not name that kind, where it is the default; so which one it was is seen when the section is built.
    """

    def __init__(self, tree: Mapping[str, Any]):
        super().__init__()
        self.of_file = dict(tree)

    def resolved(self, default: str) -> dict[str, Any]:
        return _merged(self.of_file, dict(self)) if self.of_file.get("kind", default) == self["kind"] else dict(self)


def _merged(under: Any, over: Any) -> Any:
    """``over``, and of sections in both what it leaves out."""
    if not (isinstance(under, Mapping) and isinstance(over, Mapping)):
        return over
    if isinstance(over, AnotherKind):
        found = AnotherKind(_merged(under, over.of_file))
        found.update(over)
        return found
    return {**under, **{key: _merged(under.get(key), value) for key, value in over.items()}}


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
