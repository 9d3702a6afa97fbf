"""The README of a saved model: what it is, how it is opened, and its numbers, each with its protocol.

Numbers come from the results.json that vqgan_test.py and test_net.py write; a number without a protocol is refused.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vfmtok import __version__
from vfmtok.errors import ConfigError

Metrics = str | Path | Mapping[str, Any]


def read_metrics(metrics: Metrics | Sequence[Metrics] | None) -> list[dict[str, Any]]:
    """Results of evaluations, given as files or as their content, one or several.

    Raises ConfigError: a file can't be read, or a number has no value or protocol.
    """
    if metrics is None:
        return []
    if isinstance(metrics, str | Path | Mapping):
        metrics = [metrics]
    return [_read_one(one) for one in metrics]


def _read_one(metrics: Metrics) -> dict[str, Any]:
    source = "metrics"
    if not isinstance(metrics, Mapping):
        source = str(metrics)
        try:
            metrics = json.loads(Path(metrics).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {source}: {error}") from None
    numbers = metrics.get("numbers") if isinstance(metrics, Mapping) else None
    if not isinstance(numbers, Mapping):
        raise ConfigError(f"{source} holds no numbers: give the results.json of vqgan_test.py or test_net.py")
    for name, entry in numbers.items():
        said = entry.get("protocol") if isinstance(entry, Mapping) else None
        if not isinstance(said, str) or not said.strip() or "value" not in entry:
            raise ConfigError(f"{source}: '{name}' has no value or no protocol, and a number without one says nothing")
        if not isinstance(entry["value"], int | float | None):  # null: it came out infinite, or none
            raise ConfigError(f"{source}: '{name}' is {entry['value']!r}, which is no number")
    return dict(metrics)


def write_card(name: str, kind: str, facts: Mapping[str, str], results: Sequence[Mapping[str, Any]]) -> str:
    """The text of README.md.

    Args:
        name: of the model, its title.
        kind: "tokenizer" or "generator".
        facts: what is said of it, label -> text.
        results: of ``read_metrics``.
    """
    lines = ["---", "library_name: vfmtok", "tags:", "- vfmtok", f"- {_TAGS[kind]}", "---", "", f"# {name}", ""]
    lines += [
        _ABOUT[kind],
        "",
        "```python",
        "import vfmtok",
        "",
        _opened(name, kind),
        "```",
        "",
    ]
    lines += ["| | |", "|---|---|", *(f"| {label} | {_cell(text)} |" for label, text in facts.items()), ""]
    if results:
        lines += ["## Numbers", "", "| what | value | protocol |", "|---|---|---|"]
        for result in results:
            for number, entry in result["numbers"].items():
                value = "none" if entry["value"] is None else f"{entry['value']:.{entry.get('digits', 3)}f}"
                lines.append(f"| {_cell(number)} | {value} | {_cell(entry['protocol'])} |")
        said = [text for result in results for key in ("warnings", "notes") for text in result.get(key, ())]
        lines += ["", *(f"- {text}" for text in said), *([""] if said else [])]
    else:
        lines += ["No numbers were measured.", ""]
    return "\n".join([*lines, f"Written by vfmtok {__version__}.", ""])


def _opened(name: str, kind: str) -> str:
    return f'{kind} = vfmtok.from_pretrained("{name}"{"" if kind == "tokenizer" else ", " + json.dumps(kind)})'


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


_TAGS = {"tokenizer": "image-tokenizer", "generator": "class-conditional-image-generation"}
_ABOUT = {
    "tokenizer": "An image tokenizer.",
    "generator": "A class-conditional generator of the code of an image tokenizer.",
}
