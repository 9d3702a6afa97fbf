"""`vfmtok stats --reference`: the file it writes, and what is wrong about how it is called."""

import os
import subprocess
import sys

import pytest
import tiny_models
import torch

from vfmtok import cli
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.evaluation.image_sources import open_images
from vfmtok.evaluation.reference import measure_reference
from vfmtok.evaluation.reference_file import read_reference


@pytest.mark.slow
def test_two_processes_write_the_statistics_of_the_dataset(inception, inception_file, tmp_path):
    data = tmp_path / "birds" / "val_lmdb"
    write_records(data, [Record(tiny_models.encoded(i, (40, 30)), 0, f"{i}") for i in range(5)])
    out = tmp_path / "reference.npz"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vfmtok"]
    options = ["--reference", out, "--size", 24, "--inception", inception_file, "--batch-size", 2]
    command = list(map(str, [*launcher, "stats", tmp_path / "birds", *options]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tiny_models.ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = read_reference(out)
    expected = measure_reference(inception, open_images(data, 24), "birds/val_lmdb", 5)
    assert torch.allclose(found.pool.covariance, expected.pool.covariance, rtol=1e-5, atol=1e-7)
    assert torch.allclose(found.spatial.mean, expected.spatial.mean, rtol=1e-4, atol=1e-6)
    assert found.protocol["count"] == 5 and found.protocol["crop"].startswith("centre 24")
    assert found.protocol["source"] == "birds/val_lmdb" and found.protocol["size"] == "24x24"
    assert done.stdout.count(found.sha256) == 1 and len(RecordDataset(data)) == 5


def test_wrong_calls(tmp_path, capsys):
    for arguments, text in (
        (["--size", "64"], "--size belongs to --reference"),
        (["--reference", "x.npz", "--headers-only"], "belong to `vfmtok stats` without --reference"),
        (["--reference", "x.txt"], "must end in .npz"),
        (["--reference", "no/such/x.npz"], "no folder"),
        (["--reference", str(tmp_path / "x.npz")], "no images at"),
    ):
        assert cli.main(["stats", str(tmp_path / "absent"), *arguments]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
