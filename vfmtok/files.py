"""Files that appear complete or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, sync: bool = True, rivals: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to, which becomes ``path`` at the end of the context.

    If the context fails, ``path`` is what it was and nothing else is left. What a killed process leaves, ``path`` with
    .part after it, the next one writes over.

    Args:
        sync: wait for the disk, so that a power cut leaves no empty file either.
        rivals: other processes, on this machine or another, may write the same file meanwhile.

    Raises:
        OSError: the file can't be moved, or was not written.
    """
    part = path.with_name(f"{path.name}{'.' + secrets.token_hex(4) if rivals else ''}.part")
    try:
        yield part
        if sync:
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
