"""Checks of configured values: a ConfigError in one line, "key rule, got value". And what one may have meant."""

import difflib
import math
from collections.abc import Iterable
from typing import Any

from vfmtok.errors import ConfigError


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
    """What to add to a message about a name that nobody knows: " (closest match: 'name')", or nothing."""
    match = difflib.get_close_matches(word, [str(choice) for choice in choices], n=1, cutoff=0.3)
    return f" (closest match: '{prefix}{match[0]}')" if match else ""
