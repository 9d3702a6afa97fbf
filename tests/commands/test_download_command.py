"""`vfmtok download`: parts by name, what was fetched and its hash, errors in one line."""

import hashlib

import pytest

from vfmtok import cli
from vfmtok.pretrained.published import PUBLISHED, VFMTOK

TOKENIZER = "DINOv2/tokenizer/vfmtok-tokenizer.pt"


@pytest.fixture
def published(hub):
    hub.repositories[VFMTOK] = {TOKENIZER: b"tokenizer", "DINOv2/GPT-B/GPT-B-300e.pt": b"gpt" * 1000}
    repository, file = PUBLISHED[VFMTOK].encoder
    hub.repositories[repository] = {file: b"encoder"}
    return hub


def test_parts_into_the_cache_and_checked_offline(published, capsys, tmp_path):
    assert cli.main(["download", VFMTOK, "tokenizer", "GPT-B", "encoder"]) == 0
    said = capsys.readouterr().out
    for content in (b"tokenizer", b"gpt" * 1000, b"encoder"):
        assert f"{len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}, as the Hub states" in said
    assert str(tmp_path / "cache") in said
    asked = len(published.gets)
    assert cli.main(["download", VFMTOK, "--offline"]) == 0
    assert len(published.gets) == asked and TOKENIZER in capsys.readouterr().out


def test_into_a_folder(published, capsys, tmp_path):
    assert cli.main(["download", VFMTOK, "--to", str(tmp_path / "here")]) == 0
    assert (tmp_path / "here" / TOKENIZER).read_bytes() == b"tokenizer"
    assert str(tmp_path / "here" / TOKENIZER) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([VFMTOK, "GPT-X"], "has no part 'GPT-X' (closest match: 'GPT-XL')"),
        ([VFMTOK, "GPT-3B"], "the repository has no file yexiguafu/VFMTok/DINOv2/GPT-3B/GPT-3B-200e.pt"),
        (["me/it"], "has no repository 'me/it' (or it is private: set HF_TOKEN); published are: yexiguafu/VFMTok"),
        ([VFMTOK, "--sha256", "0" * 64], "is asked for; what was received is thrown away"),
        ([VFMTOK, "--offline"], "and this is offline"),
        (["me/it", "encoder"], "'encoder' is a part of yexiguafu/VFMTok, yexiguafu/hita-gen only"),
    ],
)
def test_what_goes_wrong_is_one_line(published, capsys, arguments, message):
    assert cli.main(["download", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # above it, the progress bar
    assert error.startswith("vfmtok download: error: ") and message in error


def test_the_parts_are_told(capsys):
    assert cli.main(["download", VFMTOK, "--list"]) == 0
    said = capsys.readouterr().out
    assert TOKENIZER in said and "GPT-3B-200e.pt" in said and "none is pinned" in said


def test_all_systems_are_told(capsys):
    assert cli.main(["download", "--list"]) == 0
    said = capsys.readouterr().out
    for name, repository in PUBLISHED.items():
        assert name in said and all(row.file in said for row in repository.parts.values())
    assert cli.main(["download"]) == 2
    assert "name a repository of the Hub" in capsys.readouterr().err
