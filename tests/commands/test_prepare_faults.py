import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from image_makers import class_files, encoded, environment, noise, read_tree, vfmtok, write_tree
from test_prepare import records

from vfmtok.commands.prepare import prepare
from vfmtok.data.records import RecordDataset
from vfmtok.errors import DataError

BAD = {
    "c/truncated.jpg": encoded(1, (200, 200))[:-400],
    "c/truncated.png": noise(2)[:3000],
    "c/zero.jpg": b"",
    "c/text.jpg": b"this is no image at all, whatever its name says",
    "c/page.jpg": b"<!DOCTYPE html><html></html>",
    "c/program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
}


def test_corrupt_files_below_one_percent_are_listed_and_skipped(tmp_path):
    good = {f"c/{i:04d}.png": encoded(i, (4, 4), "PNG") for i in range(700)}
    result = vfmtok("prepare", write_tree(tmp_path / "in", good | BAD), tmp_path / "out")
    assert result.returncode == 0 and "warning: skipped 6 of 706 files" in result.stderr
    assert {r.name: r.image for r in records(tmp_path / "out/train_lmdb")} == good
    report = json.loads((tmp_path / "out/report.json").read_text())
    reasons = {entry["name"]: entry["reason"] for entry in report["skipped"]}
    assert set(reasons) == set(BAD)
    assert "truncated" in reasons["c/truncated.jpg"] and reasons["c/zero.jpg"] == "empty file"
    assert all("not an image" in reasons[f"c/{name}"] for name in ("text.jpg", "program.png"))
    assert reasons["c/page.jpg"] == "a web page, not an image"
    assert RecordDataset(tmp_path / "out/train_lmdb").metadata["skipped"] == 6


def test_more_than_one_percent_is_an_error_after_the_report(tmp_path):
    source = write_tree(tmp_path / "in", class_files(per_class=20) | {"cat/bad.jpg": b"x"})
    for _ in range(2):  # a second run finds the same
        result = vfmtok("prepare", source, tmp_path / "out")
        assert result.returncode == 2 and "1 of 61 files" in result.stderr and "Traceback" not in result.stderr
        assert json.loads((tmp_path / "out/report.json").read_text())["skipped"][0]["name"] == "cat/bad.jpg"
        with pytest.raises(DataError, match="not complete"):
            RecordDataset(tmp_path / "out/train_lmdb")


def test_an_image_that_the_format_cannot_hold_is_skipped(tmp_path):
    files = {f"c/{i:03d}.png": noise(i, 8) for i in range(100)} | {"c/long.png": encoded(1, (20000, 3), "PNG")}
    prepare([str(write_tree(tmp_path / "in", files))], tmp_path / "out", image_format="webp")
    skipped = json.loads((tmp_path / "out/report.json").read_text())["skipped"]
    assert [entry["name"] for entry in skipped] == ["c/long.png"]
    assert skipped[0]["reason"].startswith("cannot be written as WEBP: ")


def test_a_member_damaged_inside_a_zip_is_skipped(tmp_path):
    from test_listing import make_zip

    files = {f"c/{i:03d}.png": noise(i, 8) for i in range(150)}
    archive = make_zip(tmp_path / "a.zip", files)
    content = bytearray(archive.read_bytes())
    content[content.find(b"c/070.png") + 60] ^= 0xFF
    archive.write_bytes(content)
    prepare([str(archive)], tmp_path / "out")
    skipped = json.loads((tmp_path / "out/report.json").read_text())["skipped"]
    assert [entry["name"] for entry in skipped] == ["c/070.png"] and "damaged in the zip" in skipped[0]["reason"]
    assert len(records(tmp_path / "out/train_lmdb")) == 149


def _children(pid: int) -> list[int]:
    return [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_and_the_same_command_again(tmp_path, workers):
    files = {
        f"{split}/c{i % 3}/{i:04d}.png": noise(i, 120) for i in range(1050) for split in ["train" if i % 3 else "val"]
    }
    files |= {"train/c0/bad.png": b"bad", "train/c2/bad.png": b""}
    source = write_tree(tmp_path / "in", files)
    prepare([str(source)], tmp_path / "whole", workers=1)
    kills, command = 0, [sys.executable, "-m", "vfmtok", "prepare", source, tmp_path / "out", "--workers", str(workers)]
    database = tmp_path / "out/train_lmdb/data.mdb"
    for size in (1, 28 << 20):  # at the first sight of the file, and after a commit
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
        while process.poll() is None and not (database.exists() and database.stat().st_size > size):
            time.sleep(0.002)
        children = _children(process.pid)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while any(map(_runs, children)):
            assert time.monotonic() < deadline, "workers outlive the killed run"
            time.sleep(0.02)
    assert kills == 2
    with pytest.raises(DataError, match="not complete"):
        RecordDataset(tmp_path / "out/train_lmdb")
    result = vfmtok("prepare", source, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    for split in ("train_lmdb", "val_lmdb"):
        assert records(tmp_path / "out" / split) == records(tmp_path / "whole" / split)
        assert RecordDataset(tmp_path / "out" / split).metadata == RecordDataset(tmp_path / "whole" / split).metadata
    assert (tmp_path / "out/report.json").read_bytes() == (tmp_path / "whole/report.json").read_bytes()


def test_sources_changed_between_the_runs_are_an_error(tmp_path):
    source = write_tree(tmp_path / "in", {f"c/{i:04d}.png": noise(i) for i in range(1100)})
    limited = vfmtok("prepare", source, tmp_path / "out", preexec_fn=lambda: _limit_file_size(12 << 20))
    assert limited.returncode == 2
    write_tree(source, {"c/more.png": noise(9)})
    result = vfmtok("prepare", source, tmp_path / "out")
    assert result.returncode == 2 and "the sources have changed" in result.stderr


def _limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _assert_full_disk_is_survived(result, source, out, files, kept):
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if "error" in line]
    assert result.returncode == 2 and len(lines) == 1 and "cannot write" in lines[0], result.stderr
    assert "Traceback" not in result.stderr
    from vfmtok.data.records import RecordWriter

    with RecordWriter(out / "train_lmdb") as writer:  # what was committed before is intact
        assert writer.progress["count"] >= kept
    again = vfmtok("prepare", source, out)
    assert again.returncode == 0, again.stderr
    assert {r.name: r.image for r in records(out / "train_lmdb")} == files
    assert vfmtok("prepare", "--verify", out).returncode == 0


def test_a_write_limit_stops_with_one_line_and_the_rerun_continues(tmp_path):
    files = {f"c/{i:04d}.png": noise(i) for i in range(1100)}  # 512 images are a transaction of about 8 MB
    source = write_tree(tmp_path / "in", files)
    result = vfmtok("prepare", source, tmp_path / "out", preexec_fn=lambda: _limit_file_size(12 << 20))
    _assert_full_disk_is_survived(result, source, tmp_path / "out", files, kept=512)


def test_a_full_file_system_stops_with_one_line_and_the_rerun_continues(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        files = {f"c/{i:04d}.png": noise(i) for i in range(1100)}
        source = write_tree(tmp_path / "in", files)
        result = vfmtok("prepare", source, disk / "out")
        assert "no space left on the disk" in result.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        _assert_full_disk_is_survived(result, source, disk / "out", files, kept=512)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_unwritable_place_is_one_line(tmp_path):
    source = write_tree(tmp_path / "in", class_files(per_class=1))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/below"):
        result = vfmtok("prepare", source, out)
        assert result.returncode == 2 and result.stderr.count("\n") == 1


def test_a_full_disk_during_export_leaves_no_partial_file(tmp_path):
    files = {f"c/{i}.png": noise(i, 40 + 40 * i) for i in range(3)}
    prepare([str(write_tree(tmp_path / "in", files))], tmp_path / "out")
    result = vfmtok(
        "prepare", "--export", tmp_path / "out", tmp_path / "back", preexec_fn=lambda: _limit_file_size(30_000)
    )
    assert result.returncode == 2 and "cannot write" in result.stderr
    assert read_tree(tmp_path / "back") == {"c/0.png": files["c/0.png"], "c/1.png": files["c/1.png"]}
    assert vfmtok("prepare", "--export", tmp_path / "out", tmp_path / "back").returncode == 0
    assert read_tree(tmp_path / "back") == files


def test_files_that_cannot_be_read_are_skipped_and_do_not_hang(tmp_path):
    good = {f"c/{i:04d}.png": encoded(i, (4, 4), "PNG") for i in range(500)}
    source = write_tree(tmp_path / "in", good | {"c/secret.png": b"x"})
    (source / "c/link.png").symlink_to(tmp_path / "gone.png")
    (source / "c/notes.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(source / "c/pipe.jpg")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(source / "c/socket.jpg"))  # a full path would be too long for it
    (source / "c/secret.png").chmod(0)
    command = [sys.executable, "-m", "vfmtok", "prepare", source, tmp_path / "out"]
    if os.geteuid() == 0:  # may read everything, unless it gives that up
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv where root runs the tests")
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", "--inh-caps", rights, "--bounding-set", rights, *command]
    for _ in range(2):
        result = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
        assert result.returncode == 0, result.stderr
        assert {r.name: r.image for r in records(tmp_path / "out/train_lmdb")} == good
    assert "is complete" in result.stdout and "not used: 1 .txt" in result.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {entry["name"]: entry["reason"] for entry in report["skipped"]} == {
        "c/link.png": "broken link: No such file or directory",
        "c/pipe.jpg": "not a regular file but a named pipe",
        "c/secret.png": "cannot be read: Permission denied",
        "c/socket.jpg": "not a regular file but a socket",
    }
    (source / "c/link.png").unlink()
    (source / "c/link.png").write_bytes(encoded(1))  # mended: another source
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert result.returncode == 2 and "the sources have changed" in result.stderr


def test_a_pipe_or_a_broken_link_among_shards_is_one_line(tmp_path):
    for number, make in enumerate([os.mkfifo, lambda path: path.symlink_to(tmp_path / "gone")]):
        folder = tmp_path / f"shards{number}"
        folder.mkdir()
        make(folder / "0.tar")
        result = vfmtok("prepare", folder, tmp_path / "out")
        assert result.returncode == 2 and "0.tar" in result.stderr and result.stderr.count("\n") == 1


def test_a_script_without_the_guard_gets_a_line_instead_of_tracebacks(tmp_path):
    script = "from vfmtok.commands.prepare import prepare\nprepare(['sample'], 'out', workers=2)\n"
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "script.py"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=100)
    assert result.returncode == 1 and "this script needs `if __name__ == '__main__':`" in result.stderr
    assert result.stderr.count("Traceback") == 1  # of the script itself
    assert "__main__" in result.stderr.splitlines()[-1] and "DataError" in result.stderr.splitlines()[-1]
    assert vfmtok("prepare", "sample", tmp_path / "out").returncode == 0  # nothing is in the way
