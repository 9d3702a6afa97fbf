"""Claims of steps: one process at a time, and none for ever."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from vfmtok.errors import DataError
from vfmtok.study import claims
from vfmtok.study.claims import claim


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_at_a_time(tmp_path):
    first = claim(tmp_path / "step")
    assert first is not None and claim(tmp_path / "step") is None
    first.release()
    second = claim(tmp_path / "step")
    assert second is not None
    first.release()  # releases nobody else's
    assert claim(tmp_path / "step") is None
    second.release()
    assert not list((tmp_path / "step").iterdir())


def test_of_many_who_try_one_succeeds(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: claim(tmp_path), range(64)))
    assert sum(one is not None for one in found) == 1


def write(folder, **facts):
    here = json.loads((folder / "claim.json").read_text())
    (folder / "claim.json").write_text(json.dumps({**here, **facts}))


def test_a_claim_of_a_process_that_is_gone_is_taken_by_one(tmp_path, gone):
    for _ in range(20):
        assert claim(tmp_path) is not None
        write(tmp_path, process=[gone, 1])
        with ThreadPoolExecutor(8) as pool:
            found = [one for one in pool.map(lambda _: claim(tmp_path), range(8)) if one is not None]
        assert len(found) == 1
        found[0].release()
    assert not list(tmp_path.iterdir())


def test_while_the_child_works_nobody_takes_over(tmp_path, gone):
    held = claim(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held.name_child(child.pid)
    write(tmp_path, process=[gone, 1])
    assert claim(tmp_path) is None
    child.kill()
    child.wait()
    assert claim(tmp_path) is not None


def test_a_number_that_is_used_again_is_another_process(tmp_path):
    claim(tmp_path)
    write(tmp_path, process=[os.getpid(), 1])  # which began at another time
    assert claim(tmp_path) is not None


def test_a_claim_of_another_machine_counts_while_it_is_touched(tmp_path, monkeypatch):
    held = claim(tmp_path)
    write(tmp_path, host="elsewhere", process=[1, 1])
    assert claim(tmp_path) is None
    silent = (tmp_path / "claim.json").stat().st_mtime - claims.SILENCE - 10
    os.utime(tmp_path / "claim.json", (silent, silent))
    monkeypatch.setattr(claims, "BEAT", 0.0)
    held.beat()
    assert claim(tmp_path) is None
    os.utime(tmp_path / "claim.json", (silent, silent))
    assert claim(tmp_path) is not None


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        claim(tmp_path / "file/step")
