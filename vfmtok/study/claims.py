"""Who works at a step. Several processes, on one machine or many with a common file system, may work in one folder.

A claim is a file that one process alone can create, and touches as long as it works. Where the process is known to be
gone (same machine), or has not touched the file for long, another one takes over. No locks are needed, which not every
shared file system has; and should two be at work all the same, a training's own lock keeps the second one out.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from vfmtok.errors import DataError

BEAT = 15.0  # seconds between touches
SILENCE = 240.0  # seconds without any after which a claim of another machine counts for nothing


class Claim:
    """A claim that this process holds, until ``release``."""

    def __init__(self, file: Path, token: str):
        self._file, self._token, self._touched = file, token, time.monotonic()

    def beat(self) -> None:
        """Call it now and then while at work."""
        if time.monotonic() - self._touched > BEAT:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):  # a full disk, or it was taken over after a long sleep
                os.utime(self._file)

    def name_child(self, pid: int) -> None:
        """The process that does the work, which may outlive this one."""
        with contextlib.suppress(OSError, ValueError):
            facts = json.loads(self._file.read_text())
            if facts["token"] == self._token:
                self._file.write_text(json.dumps({**facts, "child": _alive(pid)}))

    def release(self) -> None:
        found = _read(self._file)
        if found is not None and found.get("token") == self._token:
            with contextlib.suppress(OSError):
                self._file.unlink()


def claim(folder: Path) -> Claim | None:
    """Claim a step's folder, which is made; None where another process is at work. Raises DataError."""
    file, token = folder / "claim.json", secrets.token_hex(8)
    facts = {"token": token, "host": socket.gethostname(), "process": _alive(os.getpid())}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            with open(file, "x", encoding="utf-8") as made:
                made.write(json.dumps(facts))
        elif not _take_over(file, facts):
            return None
    except (FileExistsError, FileNotFoundError):  # another one was quicker, or just ends
        return None
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from None
    return Claim(file, token)


def _take_over(file: Path, facts: dict[str, Any]) -> bool:
    """Put a claim in the place of a dead one. Of several who find it dead, one succeeds."""
    dead = _read(file)
    if not _is_dead(file, dead):
        return False
    turn = file.with_name(f"claim.{(dead or {}).get('token', 'cut')}.turn")  # only one process can create it
    try:
        turn.touch(exist_ok=False)
    except FileExistsError:
        if _silence(turn) > SILENCE:  # who created it was killed before it came to the end
            turn.unlink(missing_ok=True)
        return False
    try:
        if _read(file) != dead:  # another one's turn came and went since we looked
            return False
        made = turn.with_suffix(".new")
        made.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(made, file)
        return True
    finally:
        turn.unlink(missing_ok=True)


def _is_dead(file: Path, found: dict[str, Any] | None) -> bool:
    """Whether nobody works under this claim."""
    if found is None:  # gone meanwhile, or about to be written, or cut by a full disk
        return _silence(file) > BEAT
    if found.get("host") == socket.gethostname():
        return not any(_lives(found.get(name)) for name in ("process", "child"))
    return _silence(file) > SILENCE


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _silence(file: Path) -> float:
    """Seconds since a claim was touched, by the clock of the file system: those of machines differ."""
    probe = file.with_name(f"clock.{secrets.token_hex(4)}")
    try:
        probe.touch()
        return probe.stat().st_mtime - file.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _alive(pid: int) -> list[int]:
    """A process: its number and when it started, as numbers are used again."""
    return [pid, _started(pid) or 0]


def _lives(process: list[int] | None) -> bool:
    if not process:
        return False
    pid, started = process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = _started(pid)
    return not started or now is None or now == started


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks of the machine, where the system tells (Linux); -1 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] == "Z" else int(fields[19])
