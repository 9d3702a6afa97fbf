"""A family of models: the class of its configuration, and where its model is."""

from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Family:
    """A row of ``TOKENIZERS`` or ``GENERATORS``.

    Attributes:
        config: the dataclass of its configuration; its field ``kind`` has the family's name as default.
        home: "module:class" of the model, imported when it is first built.
    """

    config: type
    home: str

    @property
    def model(self) -> type:
        """The class of the model: ``model(config)``."""
        module, name = self.home.split(":")
        return getattr(import_module(module), name)
