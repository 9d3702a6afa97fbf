"""`vfmtok measure`: samples of any program against a reference, in one process and in two."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from image_makers import ROOT
from PIL import Image
from tiny_models import values

from vfmtok import cli
from vfmtok.evaluation.encoder_distance import encoder_features, open_encoder
from vfmtok.evaluation.image_sources import open_images
from vfmtok.evaluation.inception import load_inception
from vfmtok.evaluation.reference import inception_features
from vfmtok.evaluation.reference_file import read_reference
from vfmtok.metrics.inception_score import InceptionScore
from vfmtok.metrics.precision_recall import precision_recall

ENCODER = "tf_efficientnet_lite0"  # its weights are in a package
SIDE = 24


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8) for count in (11, 9)]


@pytest.fixture(scope="module")
def files(images, tmp_path_factory):
    """Samples as PNGs and as an npz, and a reference."""
    folder = tmp_path_factory.mktemp("samples")
    (folder / "png").mkdir()
    for index, image in enumerate(images[0]):
        Image.fromarray(image).save(folder / "png" / f"{index:06d}.png")
    np.savez(folder / "samples.npz", images[0])
    np.savez(folder / "reference.npz", images[1])
    return folder


@pytest.mark.slow
def test_numbers_are_those_of_the_features(images, files, inception, inception_file, tmp_path):
    """In two processes, of which each takes a ragged share."""
    flags = ["--reference", files / "reference.npz", "--inception", inception_file, "--batch-size", 4]
    flags += ["--fd", ENCODER, "--fd-weights", "package", "--fd-size", 64]
    flags += ["--out", tmp_path / "results.json"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vfmtok"]
    command = [sys.executable, *launcher, "measure", files / "samples.npz", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = values(json.loads((tmp_path / "results.json").read_text()))
    assert list(found) == ["gFID", "sFID", "IS", "Pr", "Rc", f"fd@{ENCODER}"]
    sets = [next(f for _, f in inception_features(inception, open_images(x), 64)) for x in images]
    assert found["gFID"] == pytest.approx(distance(*(f.pool for f in sets)), rel=1e-5)
    assert found["sFID"] == pytest.approx(distance(*(f.spatial for f in sets)), rel=1e-5)
    score = InceptionScore(11)
    score.update(sets[0].probabilities, torch.arange(11))
    assert found["IS"] == pytest.approx(score.compute().mean, rel=1e-6)
    assert (found["Pr"], found["Rc"]) == precision_recall(*(f.pool for f in sets))
    encoder = open_encoder(ENCODER, "package", 64)
    pixels = [torch.from_numpy(x).permute(0, 3, 1, 2).contiguous() for x in images]
    assert found[f"fd@{ENCODER}"] == pytest.approx(distance(*(encoder_features(encoder, x) for x in pixels)), rel=1e-5)
    for text in ("11 images of samples.npz at 24 px", "9 reference images", "9 samples of the reference give"):
        assert text in done.stdout
    assert "level 5 at 64 px" in done.stdout


def distance(x, y) -> float:
    """Of fewer samples than features tr sqrt(S1 S2) is the nuclear norm of the samples' inner products."""
    sets = [features.double() for features in (x, y)]
    centred = [(rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in sets]
    overlap = torch.linalg.matrix_norm(centred[0] @ centred[1].t(), "nuc")
    means = (sets[0].mean(0) - sets[1].mean(0)).square().sum()
    return (means + sum(rows.square().sum() for rows in centred) - 2 * overlap).item()


@pytest.mark.slow
def test_the_spatial_tap_is_the_one_that_is_named(images, files, inception_file, tmp_path, capsys):
    raw, rectified = (str(tmp_path / name) for name in ("raw.npz", "rectified.npz"))
    network, tap = ["--inception", str(inception_file)], ["--spatial-tap", "activation"]
    assert cli.main(["stats", str(files / "reference.npz"), "--reference", raw, *network]) == 0
    assert cli.main(["stats", str(files / "reference.npz"), "--reference", rectified, *network, *tap]) == 0
    found, activation = read_reference(rectified), load_inception(inception_file, "activation")
    _, features = next(inception_features(activation, open_images(images[1]), 64))
    assert torch.allclose(found.spatial.mean, features.spatial.double().mean(0), rtol=1e-4, atol=1e-6)
    assert found.protocol["spatial"] == "mixed_6/conv, activation, 7 channels"
    assert cli.main(["measure", str(files / "samples.npz"), "--reference", raw, *network, *tap]) == 0
    assert "sFID is left out: the reference's" in (printed := capsys.readouterr().out)
    assert "say --spatial-tap convolution" in printed


def test_a_folder_of_pngs_without_a_reference(images, files, inception, inception_file, capsys):
    assert cli.main(["measure", *map(str, [files / "png", "--inception", inception_file, "--batch-size", 4])]) == 0
    score = InceptionScore(11)
    for indices, features in inception_features(inception, open_images(images[0]), 64):
        score.update(features.probabilities, indices)
    printed = capsys.readouterr().out
    assert (
        f"IS  {score.compute().mean:>10.3f}  10 splits in order" in printed and "11 images of png at 24 px" in printed
    )
    assert "gFID and sFID are left out: no reference" in printed


def test_a_dataset_is_cut_to_the_size_that_is_given(images, files, inception, inception_file, tmp_path, capsys):
    dataset = tmp_path / "data"
    assert cli.main(["prepare", str(files / "png"), str(dataset)]) == 0
    network = ["--inception", str(inception_file)]
    assert cli.main(["measure", str(dataset), "--size", str(SIDE), *network]) == 2
    assert "has no validation split" in capsys.readouterr().err
    dataset /= "train_lmdb"
    assert cli.main(["measure", str(dataset), *network]) == 2
    assert "--size" in capsys.readouterr().err
    assert cli.main(["measure", str(dataset), "--size", str(SIDE), *network]) == 0
    score = InceptionScore(11)
    for indices, features in inception_features(inception, open_images(images[0]), 64):
        score.update(features.probabilities, indices)
    printed = capsys.readouterr().out
    assert f"IS  {score.compute().mean:>10.3f}" in printed and "one folder or class after the other" in printed
    assert cli.main(["measure", str(files / "samples.npz"), "--size", "8", *network]) == 2


def test_wrong_calls(files, inception_file, tmp_path, capsys):
    Image.new("RGB", (20, 30)).save(tmp_path / "tall.png")
    network = ["--inception", inception_file]
    for arguments, text in (
        ([files / "absent"], "no images at"),
        ([tmp_path], "the images are 20x30; FID is measured on squares"),
        ([files / "png", "--fd-weights", "hub"], "--fd-weights belongs to --fd"),
        ([files / "png", "--fd-size", "96"], "--fd-size belongs to --fd"),
        ([files / "png", "--fd", "efficientnet_lite"], "neither this package nor timm knows 'efficientnet_lite'"),
        ([files / "png", "--out", "no/such/x.json"], "no folder no/such"),
        ([files / "png", "--reference", files / "absent.npz", *network], "cannot read the reference"),
    ):
        assert cli.main(["measure", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1


def test_any_model_of_timm_is_read_at_its_last_level():
    with pytest.warns(UserWarning, match="the frozen encoder"):
        encoder = open_encoder("test_vit", "none")
        encoder(torch.zeros(1, 3, 160, 160))
    assert encoder.config.levels == (len(encoder.backbone.feature_info),) and encoder.config.image_size == 160
