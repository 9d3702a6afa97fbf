"""A family of models: the class of its configuration, and where its model is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

from vfmtok.config import closest_match, config_from_dict
from vfmtok.errors import ConfigError

Config = TypeVar("Config")


@dataclass(frozen=True)
class Family:
    """A row of ``TOKENIZERS`` or ``GENERATORS``.

    Attributes:
        config: the dataclass of its configuration; its field ``kind`` has the family's name as default.
        home: "module:class" of the model, imported when it is first built.
        sizes: name -> fields of ``config``, of the sizes that have a name ("GPT-B").
    """

    config: type
    home: str
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def model(self) -> type:
        """The class of the model: ``model(config)``."""
        module, name = self.home.split(":")
        return getattr(import_module(module), name)


def config_of_size(config: type[Config], sizes: Mapping[str, Mapping[str, Any]], size: str, fields: Mapping) -> Config:
    """The configuration of a named size, with other fields of it.

    Raises ConfigError for an unknown name or field (with the closest match) or a value that can't be used.
    """
    if size not in sizes:
        hint = closest_match(size, sizes)
        raise ConfigError(f"no {config.kind.upper()} is called '{size}'{hint}; there are {', '.join(sizes)}")
    return config_from_dict({**sizes[size], **fields}, config, source=size)
