"""What the flags of the published command lines mean for each family of tokenizers.

A family's configuration has a table ``PUBLISHED_FLAGS``, flag -> its fields that the flag sets (none: the published
commands have it, and it does nothing). Where a flag has to agree with the model file instead of changing it, there is a
table ``CHECKED_FLAGS``, flag -> field. A flag in neither is refused for that family.
"""

from collections.abc import Mapping
from typing import Any

from vfmtok.errors import ConfigError

# Widths of the pixel decoder's levels, coarse to fine, as multiples of its channels; an encoder's are the reverse.
VQ_MODELS = {"VQ-16": (4, 2, 2, 1, 1), "VQ-8": (4, 2, 2, 1)}
AE_MODELS = {"AE-16": VQ_MODELS["VQ-16"]}  # VFMAE's name of it


def fields_of_flags(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Field of the tokenizer's configuration -> value, for flags of the published command lines.

    Args:
        config: the tokenizer's, as its file says it.
        given: flag -> value, of the flags on the command line.

    Raises:
        ConfigError: the family, or this configuration of it, lacks the part that a flag sets; or a flag contradicts it.
    """
    found: dict[str, Any] = {}
    for flag, value in given.items():
        checked = getattr(config, "CHECKED_FLAGS", {}).get(flag)
        if checked is not None:
            _check(config, flag, checked, value)
            continue
        fields = getattr(config, "PUBLISHED_FLAGS", {}).get(flag)
        there = [field for field in fields or () if _has(config, field)]
        if fields is None or (fields and not there):
            raise ConfigError(f"{flag} does not fit a tokenizer of kind '{config.kind}', which has no such part")
        found |= {field: _value(flag, field, value) for field in there}
    return found


def without_effect(config: Any, given: Mapping[str, Any]) -> list[str]:
    """Those of the given flags that published commands of this family have though they set nothing."""
    return [flag for flag in given if getattr(config, "PUBLISHED_FLAGS", {}).get(flag) == ()]


def check_flags(config: Any, given: Mapping[str, Any]) -> None:
    """Flags of a script that uses a trained tokenizer must say what its configuration says. Raises ConfigError."""
    for flag, value in given.items():
        for field, wanted in fields_of_flags(config, {flag: value}).items():
            _check(config, flag, field, wanted)


def _check(config: Any, flag: str, field: str, value: Any) -> None:
    own = config
    for part in field.split("."):
        own = getattr(own, part)
    if own != (tuple(value) if isinstance(value, list) else value):
        said = f"--no-{flag[2:]}" if value is False else flag if value is True else f"{flag} {value}"
        raise ConfigError(f"{said} contradicts the tokenizer's configuration, which says {field}: {str(own).lower()}")


def _has(config: Any, field: str) -> bool:
    for part in field.split("."):
        if not hasattr(config, part):
            return False
        config = getattr(config, part)
    return True


def _value(flag: str, field: str, value: Any) -> Any:
    if flag not in ("--vq-model", "--ae-model"):
        return value
    multipliers = list({**VQ_MODELS, **AE_MODELS}[value])
    return multipliers if field.startswith("pixel_decoder.") else multipliers[::-1]
