"""Files that appear complete or not at all."""

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vfmtok.errors import DataError


@contextlib.contextmanager
def replacing(path: Path, sync: bool = True, shared: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to, which becomes ``path`` at the end of the context.

    If the context fails, ``path`` is what it was and nothing else is left. What a killed process leaves, ``path`` with
    .part after it, the next one writes over.

    Args:
        sync: wait for the disk, so that a power cut leaves no empty file either.
        shared: other processes, on this machine or another, may write the same file at the same time.

    Raises:
        OSError: the file can't be moved, or was not written.
    """
    part = path.with_name(f"{path.name}{'.' + secrets.token_hex(4) if shared else ''}.part")
    try:
        yield part
        if sync:
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def replace_file(path: Path, write: Callable[[Any], None], shared: bool = False) -> None:
    """Hand ``write`` a binary file that becomes ``path`` when it is complete; ``shared`` as for ``replacing``.

    Raises DataError.
    """
    try:
        with replacing(path, shared=shared) as part, open(part, "wb") as file:
            write(file)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from None


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Strict JSON, without NaN. Raises DataError."""
    text = json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, or None without the file. Raises DataError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    return found if isinstance(found, dict) else {}
