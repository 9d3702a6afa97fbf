"""Shards in file systems of fsspec other than http: found, read, and one line for what is missing."""

import sys

import fsspec
import pytest
from image_makers import encoded
from test_listing import make_tar

from vfmtok.data.dataset_folder import open_for_training
from vfmtok.errors import DataError
from vfmtok.sources.listing import list_sources
from vfmtok.sources.scratch import Scratch


@pytest.fixture
def store(tmp_path, monkeypatch):
    """memory://d: two shards for training and one for validation."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    for name, count in (("train-0", 3), ("train-1", 2), ("val-0", 1)):
        members = {f"{i}.{end}": data for i in range(count) for end, data in (("png", encoded(i)), ("cls", b"%d" % i))}
        files.pipe(f"/d/{name}.tar", make_tar(tmp_path / f"{name}.tar", members).read_bytes())
    yield "memory://d"
    files.rm("/d", recursive=True)


def test_shards_in_a_store_are_those_of_a_folder(store, tmp_path):
    train, val = open_for_training(store)
    local, local_val = open_for_training(tmp_path / "train-{0,1}.tar")[0], open_for_training(tmp_path / "val-0.tar")[0]
    for remote, same in ((train, local), (val, local_val)):
        assert [remote[i] for i in range(len(remote))] == [same[i] for i in range(len(same))]
    assert len(open_for_training(f"{store}/train-*.tar")[0]) == 5
    with pytest.raises(DataError, match=r"no \.tar at memory://gone"):
        open_for_training("memory://gone")


@pytest.mark.parametrize(
    ("url", "package", "line"),
    [("s3://b/x.tar", "s3fs", r"pip install 'vfmtok\[remote\]'"), ("gs://b/x.tar", "gcsfs", "gcsfs")],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, url, package, line):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=line):
        open_for_training(url)
    with pytest.raises(DataError, match="is a URL: fetch it first"):
        list_sources([url], Scratch(tmp_path))
