"""What samples are measured by: names, protocols, and numbers that do not take the others with them."""

import dataclasses
import json
import math

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import WORLD

from vfmtok.data.records import Record, write_records
from vfmtok.data.transforms import EvaluationCrop
from vfmtok.encoders.vfm import Encoder, EncoderConfig
from vfmtok.errors import DataError, EvaluationError
from vfmtok.evaluation import sample_metrics
from vfmtok.evaluation.encoder_distance import encoder_features
from vfmtok.evaluation.image_sources import batches, open_images
from vfmtok.evaluation.reference import ReferenceSet, measure_reference, open_reference, open_reference_set
from vfmtok.evaluation.results import Measured, Number, as_lines, as_tree, not_finite
from vfmtok.evaluation.sample_metrics import Subject, measure_samples
from vfmtok.files import write_json
from vfmtok.metrics.feature_bank import FeatureBank
from vfmtok.metrics.frechet import Gaussian
from vfmtok.metrics.kernel_distance import kernel_distance


def noise(count, side=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def reference(inception):
    return measure_reference(inception, open_images(noise(6, seed=1)), "six of noise")


SUBJECT = Subject(open_images(noise(5)), "no CFG", "5 samples")


def test_a_number_that_fails_leaves_the_others(inception, reference):
    rectified = Gaussian(reference.spatial.mean.abs(), reference.spatial.covariance)
    wrong = dataclasses.replace(reference, spatial=rectified)
    features = FeatureBank(6)
    with torch.no_grad():
        features.update(inception(torch.from_numpy(noise(6, seed=1)).permute(0, 3, 1, 2)).pool, torch.arange(6))
    found = measure_samples(SUBJECT, inception, ReferenceSet(wrong, features.compute()), 4, WORLD)
    assert [number.name for number in found.numbers] == ["gFID (no CFG)", "Pr (no CFG)", "Rc (no CFG)"]
    assert any(text.startswith("sFID (no CFG) is left out: the reference's spatial") for text in found.warnings)
    assert any("BIASED" in text for text in found.warnings)
    assert [text.partition(" left out")[0] for text in found.notes] == ["IS is", "KID is"]
    assert all(n.protocol.count("weights unknown") == 1 and "5 samples" in n.protocol for n in found.numbers)


def test_kid_is_measured_where_there_are_enough():
    draw = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(1003, 6, generator=draw), torch.randn(1001, 6, generator=draw) + 0.2
    found = Measured()
    sample_metrics._add_pairs(found, SUBJECT, ReferenceSet(None, theirs), ours, "network", WORLD)
    kid = next(number for number in found.numbers if number.name == "KID (no CFG)")
    assert kid.value == kernel_distance(ours, theirs).mean and "100 subsets of 1,000" in kid.protocol


@pytest.mark.filterwarnings("ignore:the frozen encoder")
def test_distance_on_another_encoder(reference):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(name="tf_efficientnet_lite0", image_size=32))

    def measured(reference):
        found, references = Measured(), ReferenceSet(reference, None)
        gaussians = sample_metrics._encoder_statistics(SUBJECT, references, encoder, 2, WORLD)
        sample_metrics._add_encoder_distance(found, SUBJECT, references, encoder, gaussians)
        return found

    found = measured(reference)
    number = next(number for number in found.numbers if number.name == "fd@tf_efficientnet_lite0 (no CFG)")
    means = []
    for images in (SUBJECT.images, reference.images):
        pixels, _ = next(batches(images, 64))
        means.append(encoder_features(encoder, pixels).double().mean(0))
    assert number.value >= (means[0] - means[1]).square().sum().item() > 0
    assert "level 5 at 32 px" in number.protocol and "against 6 images" in number.protocol
    bare = dataclasses.replace(reference, images=None)
    assert measured(bare).notes == ["fd@tf_efficientnet_lite0 is left out: the reference holds no images"]


def test_bad_records_of_a_reference_are_left_out_and_counted(inception, tmp_path):
    records = tiny_models.write_dataset(tmp_path / "data")  # one of them is bad
    found = open_reference_set(tmp_path / "data", inception, 24, 5, WORLD)
    good = [index for index in range(tiny_models.COUNT) if index != tiny_models.BAD]
    pixels = torch.stack([EvaluationCrop(24)(records[index].image) for index in good])
    assert torch.allclose(found.features, inception(pixels).pool, rtol=1e-3, atol=1e-4)
    assert found.reference.pool.count == found.reference.protocol["count"] == 13
    assert "13 images, crop centre 24" in found.reference.description
    assert "1 bad records left out" in found.reference.description
    content = [tiny_models.encoded(i, (40, 36))[: 60 if i in (0, 2) else None] for i in range(9)]
    write_records(tmp_path / "worse", [Record(c, 0, "") for c in content])
    with pytest.raises(DataError, match="2 of the 9 records of worse are bad"):
        open_reference_set(tmp_path / "worse", inception, 24, 2, WORLD)


def test_images_of_a_reference_go_through_inception_once(inception, tmp_path):
    np.savez(tmp_path / "reference.npz", noise(5))
    passes, expected = [], inception(next(batches(open_images(noise(5)), 5)).images).pool
    handle = inception.register_forward_hook(lambda *_: passes.append(1))
    found = open_reference_set(tmp_path / "reference.npz", inception, 24, 5, WORLD)
    handle.remove()
    assert len(passes) == 1 and torch.equal(found.features, expected)


def test_a_reference_of_another_size_is_an_error(inception, tmp_path):
    np.savez(tmp_path / "reference.npz", noise(5))
    assert open_reference(tmp_path / "reference.npz", inception, 24, 4, WORLD).protocol["size"] == "24x24"
    with pytest.raises(EvaluationError, match="is of 24x24 images, what is compared with it of 256x256"):
        open_reference(tmp_path / "reference.npz", inception, 256, 4, WORLD)


def test_what_is_not_finite_stays_strict_json(tmp_path):
    numbers = [Number("PSNR", math.inf, "dB"), Number("SSIM", math.nan, "mean"), Number("IS", 2.0, "splits")]
    results = {"numbers": as_tree(numbers), "warnings": not_finite(numbers), "notes": []}
    write_json(tmp_path / "results.json", results)
    text = (tmp_path / "results.json").read_text()
    assert "Infinity" not in text and "NaN" not in text and json.loads(text) == results
    lines = as_lines("title", results)
    assert lines[1].split() == ["PSNR", "none", "dB"] and lines[-2:] == [
        "  WARNING: PSNR is inf",
        "  WARNING: SSIM is nan",
    ]
