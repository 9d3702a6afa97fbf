"""`vfmtok stats --reference`: the file it writes, and what is wrong about how it is called."""

import tiny_models
import torch

from vfmtok import cli
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.evaluation.image_sources import open_images
from vfmtok.evaluation.reference import measure_reference, read_reference


def test_the_file_holds_the_statistics_of_the_dataset(inception, inception_file, tmp_path, capsys):
    write_records(tmp_path / "lmdb", [Record(tiny_models.encoded(i, (40, 30)), 0, f"{i}") for i in range(5)])
    out = tmp_path / "reference.npz"
    options = ["--reference", str(out), "--size", "24", "--inception", str(inception_file), "--batch-size", "2"]
    assert cli.main(["stats", str(tmp_path / "lmdb"), *options]) == 0
    found = read_reference(out)
    expected = measure_reference(inception, open_images(tmp_path / "lmdb", 24), "lmdb", 5)
    assert torch.allclose(found.pool.covariance, expected.pool.covariance, rtol=1e-5, atol=1e-7)
    assert torch.allclose(found.spatial.mean, expected.spatial.mean, rtol=1e-4, atol=1e-6)
    assert found.protocol["count"] == 5 and found.protocol["crop"].startswith("centre 24")
    assert len(RecordDataset(tmp_path / "lmdb")) == 5 and found.sha256 in capsys.readouterr().out


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
