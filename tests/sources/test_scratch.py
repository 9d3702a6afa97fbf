import signal
import subprocess
import sys

import pytest
from image_makers import class_files, environment, read_tree, write_tree
from test_listing import make_tar

from vfmtok.commands.prepare import prepare
from vfmtok.data.records import RecordDataset
from vfmtok.errors import DataError
from vfmtok.sources.scratch import Scratch

MINE = {"unpacked/photo.raw": b"mine", ".unpacked-mine/photo.raw": b"mine too"}


@pytest.mark.parametrize("source", ["in.tar.gz", "in", "mistyped", "damaged.tar.gz"])
def test_a_users_folders_of_such_names_are_left_alone(tmp_path, source):
    make_tar(tmp_path / "in.tar.gz", class_files(), "w:gz")
    (tmp_path / "damaged.tar.gz").write_bytes((tmp_path / "in.tar.gz").read_bytes()[:-500])
    write_tree(tmp_path / "in", class_files())
    out = write_tree(tmp_path / "out", MINE)
    if source.startswith("in"):
        prepare([str(tmp_path / source)], out)
        assert len(RecordDataset(out / "train_lmdb")) == 12
    else:
        with pytest.raises(DataError):
            prepare([str(tmp_path / source)], out)
    left = {name: content for name, content in read_tree(out).items() if "unpacked" in name}
    assert left == MINE


def test_only_what_a_killed_run_left_is_removed(tmp_path):
    code = f"import os, signal; from vfmtok.sources.scratch import Scratch; s = Scratch({str(tmp_path)!r}); "
    code += "(s.folder() / 'big.tar').write_bytes(b'x'); os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", code], env=environment())
    assert killed.returncode == -signal.SIGKILL and len(list(tmp_path.glob(".unpacked-*/big.tar"))) == 1
    write_tree(tmp_path, MINE)
    with Scratch(tmp_path) as running:
        assert read_tree(tmp_path) == MINE
        (running.folder() / "big.tar").write_bytes(b"y")
        with Scratch(tmp_path):  # another run must not take it for a killed one's
            assert (running.folder() / "big.tar").read_bytes() == b"y"
    assert read_tree(tmp_path) == MINE


def test_nothing_is_made_before_it_is_needed(tmp_path):
    with Scratch(tmp_path / "out"):
        assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out").exists()
