"""What is kept of a study that ran, small enough for a repository: its page, table and pictures, and in ``logs/`` the
logs of its trainings and the results of its measurements, from which every number of the table can be read again.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from vfmtok.errors import DataError
from vfmtok.files import read_json, write_json
from vfmtok.study.numbers import result_files
from vfmtok.study.steps import Plan, Step


def keep(plan: Plan, pictures: Iterable[str], folder: Path) -> int:
    """Copy them, of the steps that are done; the logs that were kept there before are deleted.

    ``logs/steps.json`` names the rows and seeds that a file serves, and the seconds that its step took.

    Returns:
        How many files ``logs/`` has.

    Raises:
        DataError: the folder can't be written.
    """
    logs, index = folder / "logs", {}
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for file in read_json(logs / "steps.json") or {}:
            (logs / file).unlink(missing_ok=True)
        for name in ("study.html", "table.json", "table.md", *(f"{name}.png" for name in pictures)):
            shutil.copyfile(plan.folder / name, folder / name)
        for step in plan.steps:
            known = read_json(step.folder / "step.json") or {}
            if known.get("done"):
                for file, source in kept_files(step).items():
                    if file in index:  # of another row, whose name is the same without its signs
                        file = f"{step.key}-{file}"
                    shutil.copyfile(source, logs / file)
                    index[file] = {"kind": step.kind, "serves": step.needed_by, "seconds": known.get("seconds")}
        write_json(logs / "steps.json", index)
    except OSError as error:
        raise DataError(f"cannot keep the study in {folder}: {error.strerror or error}") from None
    return len(index)


def kept_files(step: Step) -> dict[str, Path]:
    """Name in ``logs/`` -> the file of a step: a training's log, a measurement's results."""
    row, seed = step.needed_by[0]
    name = f"{step.kind.replace(' ', '-')}-{_slug(row)}-seed-{seed}"
    if step.is_training:
        log = step.out / "log.jsonl"
        return {f"{name}.jsonl": log} if log.is_file() else {}
    files = result_files(step.out)
    inner = ["" if path.parent == step.out else f"-{_slug(path.parent.name)}" for path in files]
    return {f"{name}{suffix}.json": path for suffix, path in zip(inner, files, strict=True)}


def _slug(text: str) -> str:
    """ "+ Frozen VFM" -> "plus-frozen-vfm"."""
    words = text.lower().replace("+", " plus ").replace("- ", " minus ")
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")
