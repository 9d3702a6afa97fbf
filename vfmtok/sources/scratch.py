"""A folder for unpacked archives: made when the first one needs it, and removed with nothing else."""

import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: what a killed run left stays there
    fcntl = None

_PREFIX, _MARKER = ".unpacked-", "made-by-vfmtok-prepare"


class Scratch(AbstractContextManager):
    """A new folder inside ``parent``, removed on exit.

    Those of killed runs are removed on entry: they carry the prefix and our marker file, and no
    process holds the marker's lock. Anything else in ``parent`` is the user's.
    """

    def __init__(self, parent: str | Path):
        self._parent = Path(parent)
        self._folder: Path | None = None
        self._marker: int | None = None

    def __enter__(self) -> "Scratch":
        for folder in self._parent.glob(f"{_PREFIX}*") if fcntl and self._parent.is_dir() else ():
            if not folder.is_symlink() and (folder / _MARKER).is_file() and _is_unlocked(folder / _MARKER):
                shutil.rmtree(folder, ignore_errors=True)
        return self

    def folder(self) -> Path:
        """The folder, made at the first call. Raises OSError if it can't be."""
        if self._folder is None:
            self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
            self._marker = os.open(self._folder / _MARKER, os.O_CREAT | os.O_RDWR)
            if fcntl:
                fcntl.flock(self._marker, fcntl.LOCK_EX)
        return self._folder

    def __exit__(self, *_: object) -> None:
        if self._marker is not None:
            os.close(self._marker)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder, self._marker = None, None


def _is_unlocked(marker: Path) -> bool:
    try:
        with open(marker) as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or a file system without locks
        return False
    return True
