"""Reference files: ours there and back, ADM's as they are, and files that are neither."""

import json

import numpy as np
import pytest
import torch

from vfmtok.errors import DataError, EvaluationError
from vfmtok.evaluation.image_sources import open_images
from vfmtok.evaluation.reference import inception_features, measure_reference
from vfmtok.evaluation.reference_file import read_reference, write_reference
from vfmtok.metrics.frechet import RankDeficientWarning, frechet_distance


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def measured(inception, images):
    return measure_reference(inception, open_images(images), "five of noise", batch=2)


def test_statistics_are_those_of_the_features(inception, images, measured):
    features = [f for _, f in inception_features(inception, open_images(images), batch=5)]
    pool, spatial = (np.concatenate([getattr(f, name).numpy() for f in features]) for name in ("pool", "spatial"))
    for gaussian, rows in ((measured.pool, pool), (measured.spatial, spatial)):
        assert np.allclose(gaussian.mean, rows.astype(np.float64).mean(0), rtol=1e-5, atol=1e-6)
        covariance = np.cov(rows.astype(np.float64).T)
        assert np.abs(gaussian.covariance.numpy() - covariance).max() < 1e-5 * np.abs(covariance).max()
        assert gaussian.count == 5


def test_there_and_back(measured, tmp_path):
    write_reference(measured, tmp_path / "reference.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["reference.npz"]
    read = read_reference(tmp_path / "reference.npz")
    assert torch.equal(read.pool.covariance, measured.pool.covariance)
    assert torch.equal(read.spatial.mean, measured.spatial.mean) and read.pool.count == 5
    assert read.sha256 == measured.sha256
    assert read.protocol == {
        "source": "five of noise",
        "count": 5,
        "crop": "as given",
        "size": "24x24",
        "network": "Inception 2015-12-05 (torch-fidelity)",
        "weights_sha256": None,
        "spatial": "mixed_6/conv, convolution, 7 channels",
    }
    with pytest.warns(RankDeficientWarning):
        assert frechet_distance(read.pool, measured.pool) == pytest.approx(0, abs=1e-9)


def test_an_edited_file_is_refused(measured, tmp_path):
    path = tmp_path / "reference.npz"
    write_reference(measured, path)
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "mu": arrays["mu"] + 1e-9})
    with pytest.raises(DataError, match="does not match the SHA-256 inside it"):
        read_reference(path)
    about = json.loads(str(arrays["vfmtok"]))
    about["protocol"]["crop"] = "another"
    np.savez(path, **{**arrays, "vfmtok": np.array(json.dumps(about))})
    with pytest.raises(DataError, match="does not match"):
        read_reference(path)
    about["format"] = 2
    np.savez(path, **{**arrays, "vfmtok": np.array(json.dumps(about))})
    with pytest.raises(DataError, match="format 2"):
        read_reference(path)


def test_files_in_adms_layout(measured, images, tmp_path):
    """Its reference holds statistics of all of ImageNet and 10,000 images; its samples hold images and labels."""
    statistics = {
        "mu": measured.pool.mean.numpy(),
        "sigma": measured.pool.covariance.numpy(),
        "mu_s": measured.spatial.mean.numpy(),
        "sigma_s": measured.spatial.covariance.numpy(),
    }
    np.savez(tmp_path / "virtual.npz", images, np.arange(5), **statistics)
    reference = read_reference(tmp_path / "virtual.npz")
    assert torch.equal(reference.pool.mean, measured.pool.mean) and reference.pool.count is None
    assert torch.equal(reference.spatial.covariance, measured.spatial.covariance)
    assert len(reference.images) == 5 and reference.protocol == {}
    np.savez(tmp_path / "samples.npz", images)
    alone = read_reference(tmp_path / "samples.npz")
    assert alone.pool is None and len(alone.images) == 5 and len(alone.sha256) == 64
    with pytest.raises(EvaluationError, match="measure it first"):
        write_reference(alone, tmp_path / "x.npz")
    np.savez(tmp_path / "fid.npz", mu=statistics["mu"], sigma=statistics["sigma"])
    only_pool = read_reference(tmp_path / "fid.npz")
    assert only_pool.spatial is None and only_pool.images is None


def test_files_that_are_no_reference(tmp_path, measured):
    def refused(match):
        with pytest.raises((DataError, EvaluationError), match=match):
            read_reference(tmp_path / "x.npz")

    refused("cannot read")
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and no more")
    refused("cannot read")
    np.savez(tmp_path / "x.npz", other=np.zeros(2))
    refused("neither mu, sigma")
    np.savez(tmp_path / "x.npz", mu=np.zeros(2048))
    refused("lacks 'sigma'")
    np.savez(tmp_path / "x.npz", mu=np.zeros(64), sigma=np.eye(64))
    refused("instead of 2048")
    np.savez(tmp_path / "x.npz", mu=np.zeros(2048), sigma=np.full((2048, 2048), np.nan))
    refused("not finite")
    with open(tmp_path / "x.npz", "wb") as file:
        np.save(file, np.zeros(3))
    refused("not an npz file")
    with pytest.raises(DataError, match="cannot write"):
        write_reference(measured, tmp_path / "gone" / "x.npz")


def test_who_a_measured_reference_is_does_not_depend_on_batches(inception, images, measured):
    """The statistics' last digits do: a resumed evaluation must not take the same images for another reference."""
    again = measure_reference(inception, open_images(images), "five of noise", batch=5)
    assert again.identity == measured.identity
    changed = images.copy()
    changed[3, 2, 1, 0] ^= 1
    assert measure_reference(inception, open_images(changed), "five of noise", batch=2).identity != measured.identity
    swapped = measure_reference(inception, open_images(images[::-1]), "five of noise", batch=2)
    assert swapped.identity != measured.identity
