"""What a step of a study depends on, as plain values that are hashed.

What changes neither what is learned nor what is measured is left out, and so is what a recipe leaves at its default: a
later version's new field makes no step another one. Files and runs count by their content, not by where they lie.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from vfmtok.config import config_to_dict
from vfmtok.errors import WeightsError
from vfmtok.pretrained.published import split_name
from vfmtok.weights.checkpoint import newest_checkpoint
from vfmtok.weights.reading import sha256
from vfmtok.weights.saved import read_state

# Section of a recipe -> its fields that are left out; None: all of them.
LEFT_OUT: dict[str, tuple[str, ...] | None] = {
    "run": (
        "results_dir", "log_every", "save_every", "keep", "validate_every", "tensorboard", "wandb", "new_data",
    ),
    "data": ("path", "num_workers"),  # the study's images count by their fingerprints
    "pictures": None,
}  # fmt: skip
FILES = ("weights", "perceptual_weights")  # fields that name a file, or say how one is found
RUNS = ("start_from", "continue_from")  # fields that name a run, a checkpoint, a file or something published
HOW_FOUND = ("none", "random", "hub", "auto", "package")


class Contents:
    """The content of files and runs, each read once."""

    def __init__(self):
        self._known: dict[Path, str] = {}

    def of_recipe(self, recipe: Any, **instead: Any) -> dict[str, Any]:
        """A training's recipe without what is left out; ``instead``: sections of other content."""
        found = {**said(recipe), **instead}
        for section, left_out in LEFT_OUT.items():
            if left_out is None:
                found.pop(section, None)
            elif section not in instead:
                found[section] = {k: v for k, v in found.get(section, {}).items() if k not in left_out}
        return self.of_tree(found)

    def of_config(self, config: Any) -> dict[str, Any]:
        return self.of_tree(said(config))

    def of_tree(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Plain values, those of ``FILES`` and ``RUNS`` by content. Raises WeightsError: one can't be read."""
        found = {}
        for key, value in tree.items():
            if isinstance(value, dict):
                value = self.of_tree(value)
            elif isinstance(value, str) and key in FILES and value not in HOW_FOUND:
                value = self.of_file(value)
            elif isinstance(value, str) and key in RUNS:
                value = self.of_weights(value)
            found[key] = value
        return found

    def of_flags(self, words: list[str]) -> list[str]:
        """The words of a command line, files among them by content. Raises WeightsError: one can't be read."""
        found = []
        for word in words:
            flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
            found.append(flag + equals + self.of_file(value) if value else word)
        return found

    def of_weights(self, name: str) -> str:
        """Of a run's newest checkpoint, a checkpoint, a saved model or a file; something published by its name.

        Raises:
            WeightsError: there is nothing of the kind, or it can't be read.
        """
        path = Path(name).expanduser()
        if not path.exists() and split_name(name) is None:
            raise WeightsError(f"no weights at {name}, and nothing published is called so")
        if not path.is_dir():
            return self.of_file(name)
        folder = newest_checkpoint(path) if (path / "checkpoints").is_dir() else path
        if (folder / "state.json").is_file():
            return read_state(folder)["sha256"]  # which seals the hashes of all its files
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.yaml")])
        if not files:
            raise WeightsError(f"{name} holds no weights")
        return _hash([(file.name, self.of_file(str(file))) for file in files])

    def of_file(self, name: str) -> str:
        """What is not there as a file stays its name. Raises WeightsError: it can't be read."""
        path = Path(name).expanduser()
        if not path.is_file():
            return name
        if path not in self._known:
            self._known[path] = sha256(path)
        return self._known[path]


def said(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults, sections likewise."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            inner = said(value)
            if inner or item.default is None:
                found[item.name] = inner
        elif item.name == "kind" or value != _default(item):
            found[item.name] = value
    return json.loads(json.dumps(found, default=config_to_dict))  # tuples become lists, and sections in them dicts


def _default(item: dataclasses.Field) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def without_seed(facts: dict[str, Any]) -> dict[str, Any]:
    """What decides how fast a training is."""
    recipe = facts.get("recipe")
    if recipe is None:
        return facts
    return {**facts, "recipe": {**recipe, "run": {k: v for k, v in recipe["run"].items() if k != "seed"}}}


def identity(facts: dict[str, Any]) -> str:
    """The short hash that names a step's folder."""
    return _hash(facts)[:12]


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
