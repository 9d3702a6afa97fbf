"""Files that appear complete or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """A path beside ``path`` to write to, which becomes ``path`` at the end of the context.

    If the context fails, ``path`` is what it was and nothing else is left. Another process may do the same meanwhile.

    Args:
        sync: wait for the disk, so that a power cut leaves no empty file either.

    Raises:
        OSError: the file can't be moved, or was not written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        if sync:
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
