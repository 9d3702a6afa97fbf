"""Files of the Hub: fetched once, continued after a cut, never there half or wrong."""

import hashlib
from pathlib import Path

import hub_server
import numpy as np
import pytest

from vfmtok.errors import WeightsError
from vfmtok.weights import download

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def one_file(hub):
    hub.repositories["me/it"] = {"folder/w.safetensors": CONTENT, "config.yaml": b"a: 1\n"}
    return hub


def files_below(folder: Path) -> list[str]:
    """What a reader of the cache could take for content."""
    found = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return sorted(path.name for path in found if path.suffix not in (".lock", ".part") and path.name != "CACHEDIR.TAG")


def test_fetched_once_and_where_huggingface_hub_has_it(one_file, tmp_path):
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    path = download.fetch("me/it", "folder/w.safetensors")
    assert path.read_bytes() == CONTENT and download.sha256_stated(path) == DIGEST
    assert len(one_file.gets) == 1
    assert download.fetch("me/it", "folder/w.safetensors") == path and len(one_file.gets) == 1
    assert str(path) == try_to_load_from_cache("me/it", "folder/w.safetensors", cache_dir=tmp_path / "cache")
    (repository,) = scan_cache_dir(tmp_path / "cache").repos
    assert repository.repo_id == "me/it" and repository.size_on_disk == len(CONTENT)
    assert download.fetch("me/it", "config.yaml").read_text() == "a: 1\n"


def test_the_token_goes_to_the_hub_alone(one_file):
    download.fetch("me/it", "config.yaml")
    download.fetch("me/it", "folder/w.safetensors")
    assert [path.split("/")[1] for path, _ in one_file.gets] == ["me", "cdn"] and one_file.tokens == {"127.0.0.1"}


@pytest.mark.parametrize("resets", [False, True])
def test_a_cut_connection_is_taken_up_again(one_file, resets, monkeypatch):
    for module in ("constants", "file_download"):  # what is lost of a connection
        monkeypatch.setattr(f"huggingface_hub.{module}.DOWNLOAD_CHUNK_SIZE", 65536, raising=False)
    one_file.cut_after, one_file.cuts, one_file.resets = 200_000, 1, resets
    assert download.fetch("me/it", "folder/w.safetensors").read_bytes() == CONTENT
    first, second = one_file.gets
    assert first[1] is None
    if not resets:  # a reset may throw away all that was on the way
        assert second[1] == f"bytes={3 * 65536}-"


def test_another_process_goes_on_where_the_first_was_cut(one_file, tmp_path, monkeypatch):
    """huggingface_hub itself would begin anew: it removes what it had when it gives up."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    one_file.cut_after, one_file.cuts = 0, 1000
    with pytest.raises(WeightsError, match="broke off after 0 of 300,000 bytes"):
        download.fetch("me/it", "folder/w.safetensors")
    part = next(tmp_path.rglob("*.part"))
    part.write_bytes(CONTENT[:123_456])  # as a killed process leaves it
    assert not files_below(tmp_path / "cache")
    one_file.cuts = 0
    one_file.gets.clear()
    assert download.fetch("me/it", "folder/w.safetensors").read_bytes() == CONTENT
    assert [asked for _, asked in one_file.gets] == ["bytes=123456-"]
    assert not list(tmp_path.rglob("*.part"))


def test_a_beginning_of_something_else_is_found_out(one_file, tmp_path):
    folder = tmp_path / "cache/models--me--it/blobs"
    folder.mkdir(parents=True)
    (folder / f"{DIGEST}.{DIGEST[:16]}.part").write_bytes(bytes(1000))
    with pytest.raises(WeightsError, match=r"SHA-256 is .* the Hub states; what was received is thrown away"):
        download.fetch("me/it", "folder/w.safetensors")
    assert download.fetch("me/it", "folder/w.safetensors").read_bytes() == CONTENT


@pytest.mark.parametrize("file", ["folder/w.safetensors", "config.yaml"])
def test_a_wrong_hash_leaves_nothing(one_file, file, tmp_path):
    one_file.corrupt = True
    with pytest.raises(WeightsError, match="the Hub states; what was received is thrown away"):
        download.fetch("me/it", file)
    assert not files_below(tmp_path / "cache") and not list(tmp_path.rglob("*.part"))
    one_file.corrupt = False
    assert download.fetch("me/it", file).stat().st_size


def test_a_pinned_hash(one_file, tmp_path):
    with pytest.raises(WeightsError, match=f"SHA-256 is {DIGEST}, {'0' * 64} is asked for"):
        download.fetch("me/it", "folder/w.safetensors", sha256="0" * 64)
    assert not files_below(tmp_path / "cache")
    for none in (DIGEST[:40], "", "sha256:" + DIGEST):
        with pytest.raises(WeightsError, match="is no SHA-256"):
            download.fetch("me/it", "folder/w.safetensors", sha256=none)
    path = download.fetch("me/it", "folder/w.safetensors", sha256=DIGEST.upper())
    with pytest.raises(WeightsError, match="is asked for: delete"):  # of a file that is there already
        download.fetch("me/it", "folder/w.safetensors", sha256="0" * 64)
    assert path.is_file()


def test_a_cache_that_was_changed_is_found_out(one_file):
    path = download.fetch("me/it", "folder/w.safetensors")
    path.resolve().write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(WeightsError, match=r"the Hub states: delete .* and download it again"):
        download.fetch("me/it", "folder/w.safetensors")


@pytest.mark.parametrize(
    ("repository", "file", "revision", "message"),
    [
        ("me/other", "config.yaml", None, "has no repository 'me/other'"),
        ("me/it", "nothing.pt", None, "has no file me/it/nothing.pt"),
        ("me/it", "config.yaml", "v2", "'me/it' has no revision 'v2'"),
    ],
)
def test_what_the_hub_does_not_have(one_file, repository, file, revision, message, tmp_path):
    with pytest.raises(download.AbsentError, match=message) as error:
        download.fetch(repository, file, revision)
    assert "\n" not in str(error.value) and not files_below(tmp_path / "cache")


def test_without_network_the_cache_answers(one_file, monkeypatch, tmp_path):
    path = download.fetch("me/it", "config.yaml")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert download.fetch("me/it", "config.yaml") == path
    with pytest.raises(
        WeightsError, match=r"w.safetensors is not in the cache and cannot be had from http://127.0.0.1:9"
    ):
        download.fetch("me/it", "folder/w.safetensors")


@pytest.mark.parametrize("by", ["variable", "argument"])
def test_offline_asks_nobody(one_file, monkeypatch, by):
    path = download.fetch("me/it", "config.yaml")
    asked = len(one_file.gets)
    if by == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with download.hub_access(offline=by == "argument" or None):
        assert download.fetch("me/it", "config.yaml") == path
        with pytest.raises(WeightsError, match=r"w.safetensors is not in the cache .*cache, and this is offline"):
            download.fetch("me/it", "folder/w.safetensors")
    assert len(one_file.gets) == asked
    assert download._access() == download.Access()


def test_into_a_folder(one_file, tmp_path):
    with download.hub_access(to=tmp_path / "here"):
        path = download.fetch("me/it", "folder/w.safetensors")
        assert path == tmp_path / "here/folder/w.safetensors" and path.read_bytes() == CONTENT
        assert not (tmp_path / "cache").exists()
        one_file.gets.clear()
        download.fetch("me/it", "folder/w.safetensors")
        assert not one_file.gets
        path.write_bytes(b"cut")
        assert download.fetch("me/it", "folder/w.safetensors").read_bytes() == CONTENT
    download.fetch("me/it", "folder/w.safetensors")
    with download.hub_access(to=tmp_path / "there", offline=True):  # a copy of the cache's
        path = download.fetch("me/it", "folder/w.safetensors")
    assert path.read_bytes() == CONTENT and not path.is_symlink()


def test_another_cache_folder(one_file, tmp_path):
    with download.hub_access(tmp_path / "elsewhere"):
        path = download.fetch("me/it", "config.yaml")
    assert (tmp_path / "elsewhere") in path.parents and not (tmp_path / "cache").exists()


def test_a_server_that_is_not_the_hub(hub, monkeypatch):
    hub.repositories["me/it"] = {}
    monkeypatch.setattr(hub_server, "COMMIT", "")
    hub.repositories["me/it"]["config.yaml"] = b"x"
    with pytest.raises(WeightsError, match="does not answer as the Hub does"):
        download.fetch("me/it", "config.yaml")


def test_content_that_huggingface_hub_keeps_for_all_repositories(one_file, tmp_path):
    """Its own downloads leave a link to a link: blobs/SHA-256 -> a common store, under hashes of another kind."""
    path = download.fetch("me/it", "folder/w.safetensors")
    blob, stored = path.resolve(), tmp_path / "cache/blobs/ab" / ("ab" * 32)
    stored.parent.mkdir(parents=True)
    blob.rename(stored)
    blob.symlink_to(stored)
    for offline in (None, True):
        with download.hub_access(offline=offline):
            assert download.fetch("me/it", "folder/w.safetensors") == path
    assert download.sha256_stated(path) == DIGEST and len(one_file.gets) == 1
    stored.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(WeightsError, match=f"{DIGEST} the Hub states: delete"):
        download.fetch("me/it", "folder/w.safetensors")


@pytest.mark.parametrize("etag", ["../../../outside", "/outside", ".."])
def test_a_server_does_not_name_files_elsewhere(one_file, etag, tmp_path):
    one_file.etag = etag
    with pytest.raises(WeightsError, match="does not answer as the Hub does"):
        download.fetch("me/it", "config.yaml")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_a_hash_the_size_tells_a_cut_file(one_file, tmp_path):
    one_file.etag = "no-hash"
    (tmp_path / "config.yaml").write_bytes(b"a:")
    with download.hub_access(to=tmp_path):
        assert download.fetch("me/it", "config.yaml").read_bytes() == b"a: 1\n"


def test_a_whole_download_that_was_killed_before_its_end_is_not_asked_for_again(one_file, tmp_path):
    folder = tmp_path / "cache/models--me--it/blobs"
    folder.mkdir(parents=True)
    (folder / f"{DIGEST}.{DIGEST[:16]}.part").write_bytes(CONTENT)
    assert download.fetch("me/it", "folder/w.safetensors").read_bytes() == CONTENT and not one_file.gets


def test_the_variable_may_begin_at_home(one_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", "~/models")
    assert (tmp_path / "home/models") in download.fetch("me/it", "config.yaml").parents
    assert not (tmp_path / "~").exists()


def test_what_was_just_checked_is_not_read_again(one_file, monkeypatch):
    read, digest = [], download._digest
    monkeypatch.setattr(download, "_digest", lambda path, kind: read.append(path) or digest(path, kind))
    download.fetch("me/it", "folder/w.safetensors")
    assert len(read) == 1
    download.fetch("me/it", "folder/w.safetensors")  # from the cache, checked
    assert len(read) == 2
