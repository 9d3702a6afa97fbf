"""Long evaluations as jobs on disk, block by block: what is finished stays finished, and any process can continue.

A job's folder holds ``job.json`` (what is computed), ``parts/`` while it runs (an npz for every block of samples, there
complete or not at all), and ``results.json`` once it is done. Several machines must see the same folder. Blocks begin
at multiples of the batch size, whatever the number of processes, so the networks see the same batches.

Shapes: N samples, B batch.
"""

import itertools
import json
import os
import re
import shutil
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vfmtok import distributed
from vfmtok.errors import DataError
from vfmtok.files import read_json, replace_file, write_json

Place = tuple[int, int]  # samples start ... stop - 1


def begin(
    folder: Path,
    job: dict[str, Any],
    may_change: tuple[str, ...] = (),
    unsaid: Mapping[str, Any] = types.MappingProxyType({}),
) -> dict[str, Any] | None:
    """Make the folder of a job, or find the one to continue.

    Args:
        may_change: keys in which the job may differ from the folder's, whose samples are kept.
        unsaid: what keys meant before jobs had them.

    Returns:
        the results if this very job is finished, else None.

    Raises:
        DataError: the folder belongs to another job (says what differs), or can't be written.
    """
    for name in ("results.json", "job.json"):
        found = read_json(folder / name)
        if found is None:
            continue
        theirs = found.get("job", {}) if name == "results.json" else found
        different = differences(job, theirs, unsaid)
        fixed = [key for key in different if key not in may_change]
        if fixed:
            key = fixed[0]
            raise DataError(
                f"{folder} holds an evaluation with another {key} ({theirs.get(key, unsaid.get(key))}, not "
                f"{job[key]}): choose another folder, or delete that one"
            )
        if name == "results.json" and not different:
            return found
    try:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror}") from None
    write_json(folder / "job.json", job)
    return None


def differences(job: dict[str, Any], theirs: dict[str, Any], unsaid: Mapping[str, Any]) -> list[str]:
    """Keys in which a job differs from another, which was in a file. ``unsaid`` as for ``begin``."""
    theirs = {**unsaid, **theirs}
    return [key for key, value in _plain(job).items() if theirs.get(key) != value]


def begin_together(
    folder: Path,
    job: dict[str, Any],
    world: distributed.World,
    may_change: tuple[str, ...] = (),
    unsaid: Mapping[str, Any] = types.MappingProxyType({}),
) -> dict[str, Any] | None:
    """``begin`` in the first process, its answer in all; raises SharedError where ``begin`` raises."""
    results = None
    with distributed.together():
        if world.is_main:
            results = begin(folder, job, may_change, unsaid)
    results = distributed.gather(results)[0]
    if results is not None:
        distributed.print_main(f"{folder} is already complete")
    return results


def finish(folder: Path, results: dict[str, Any]) -> None:
    """Write ``results.json``, which holds the job as well, and remove the blocks. Raises DataError."""
    write_json(folder / "results.json", results)
    shutil.rmtree(folder / "parts", ignore_errors=True)  # left over they do no harm
    (folder / "job.json").unlink(missing_ok=True)


class Blocks:
    """The finished blocks of samples 0 ... ``count`` - 1 below a job's folder."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder / "parts", count

    def finished(self) -> list[Place]:
        """In the order of samples. Raises DataError if two overlap."""
        found = [re.fullmatch(r"(\d+)-(\d+)\.npz", name) for name in os.listdir(self.folder)]
        places = sorted((int(match[1]), int(match[2])) for match in found if match)
        for (_, stop), (start, _) in itertools.pairwise(places):
            if start < stop:
                raise DataError(f"{self.folder} holds sample {start} twice: delete the folder and start again")
        return places

    def blocks_to_do(self, batch: int) -> list[np.ndarray]:
        """Blocks (at most B,) int64 of consecutive samples that are not finished."""
        to_do = np.ones(self.count, bool)
        for start, stop in self.finished():
            to_do[start:stop] = False
        blocks = []
        for start in range(0, self.count, batch):
            rows = start + np.flatnonzero(to_do[start : start + batch])
            blocks += np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else []
        return blocks

    def share_to_do(self, batch: int, world: distributed.World) -> list[np.ndarray]:
        """This process's blocks. It returns when all have seen what is to do, before anybody changes it."""
        with distributed.together():
            return self.blocks_to_do(batch)[world.rank :: world.size]

    def check_complete(self) -> list[Place]:
        """All blocks. Raises DataError if a sample is missing."""
        places = self.finished()
        if sum(stop - start for start, stop in places) != self.count:
            raise DataError(f"{self.folder} lacks samples: do all machines see the same folder?")
        return places

    def write(self, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """The block ``rows`` (B,), complete or not at all. Raises DataError."""
        target = self.folder / f"{rows[0]:08d}-{rows[-1] + 1:08d}.npz"
        replace_file(target, lambda file: np.savez(file, **arrays))

    def read(self, place: Place, *names: str) -> list[np.ndarray]:
        """Arrays of a block by name; only these are read. Raises DataError."""
        path = self.folder / f"{place[0]:08d}-{place[1]:08d}.npz"
        try:
            with np.load(path, allow_pickle=False) as archive:
                return [archive[name] for name in names]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read {path}: {error}; delete it and run again") from None


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: tuples become lists."""
    return json.loads(json.dumps(tree))
