"""The systems that folders hold: every generator in them with the tokenizer whose code it learned.

A run says which tokenizer that is by its hash, so neither names nor places matter: a quickstart's folder, a study's, or
several runs that lie anywhere.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from vfmtok.demo.studio import Studio
from vfmtok.errors import ConfigError, VFMTokError
from vfmtok.files import read_json
from vfmtok.pretrained.loading import build, read_weights, use_statistics
from vfmtok.weights.hashing import tokenizer_hash
from vfmtok.weights.saved import has_part

DEPTH = 4  # folders below the one that is named; a study's runs lie three below it


def open_systems(
    folders: Iterable[str | Path], device: torch.device, say: Callable[[str], None] = print
) -> dict[str, Studio]:
    """By name: first all generators with their tokenizers, then tokenizers of which no generator is there.

    Args:
        say: is told of every model that is left out, and why.

    Raises:
        ConfigError: there is no such folder, or none holds a model that can be opened.
    """
    tokenizers, generators = {}, []  # hash -> (name, model); (name, weights)
    for name, run in _runs(folders):
        try:
            weights = read_weights(run)
            if weights.section == "generator":
                generators.append((name, weights))
            else:
                model = build(weights).to(device)
                tokenizers.setdefault(tokenizer_hash(model), (name, model))
        except VFMTokError as error:
            say(f"left out: {name}: {error}")
    found, taken = {}, set()
    for name, weights in sorted(generators, key=lambda pair: pair[0]):
        if weights.tokenizer_hash not in tokenizers:
            why = "it does not say which tokenizer it learned from: name both by --gpt and --vq-ckpt"
            if weights.tokenizer_hash:
                why = f"its tokenizer is not there (hash {weights.tokenizer_hash[:12]}...)"
            say(f"left out: {name}: {why}")
            continue
        try:
            generator = build(weights)
            use_statistics(generator, weights, None)
        except VFMTokError as error:
            say(f"left out: {name}: {error}")
            continue
        taken.add(weights.tokenizer_hash)
        found[_unlike(name, found)] = Studio(
            tokenizers[weights.tokenizer_hash][1], generator.to(device), weights.classes
        )
    for digest, (name, model) in tokenizers.items():
        if digest not in taken:
            found[_unlike(name, found)] = Studio(model, None, None)
    if not found:
        raise ConfigError(f"no tokenizer that can be opened in {', '.join(map(str, folders))}")
    return found


def _runs(folders: Iterable[str | Path]) -> Iterator[tuple[str, Path]]:
    """(name, folder) of every run with a checkpoint, and of every saved model. Raises ConfigError."""
    for top in (Path(folder).expanduser() for folder in folders):
        if not top.is_dir():
            raise ConfigError(f"no folder {top}")
        for place, inner, _ in os.walk(top):
            path = Path(place)
            if _is_model(path):
                inner.clear()
                yield _name(path, top), path
            elif len(path.relative_to(top).parts) == DEPTH:
                inner.clear()
            inner.sort()


def _is_model(path: Path) -> bool:
    is_saved = (path / "config.yaml").is_file() and any(has_part(path, part) for part in ("model", "ema"))
    return is_saved or any((path / "checkpoints").glob("step_*"))


def _name(run: Path, top: Path) -> str:
    """A study's step says which rows it serves; other runs are called by their place."""
    step = read_json(run.parent / "step.json") or {}
    if "rows" in step:
        return step["rows"] if step.get("kind") == "generator" else f"{step.get('kind')} of {step['rows']}"
    return f"{top.resolve().name}/{run.relative_to(top)}" if run != top else top.resolve().name


def _unlike(name: str, others: Iterable[str]) -> str:
    """The name, with a number where another one has it."""
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(new for new in itertools.chain([name], numbered) if new not in others)
