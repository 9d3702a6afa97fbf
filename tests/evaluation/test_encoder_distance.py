"""fd@<encoder> and distance@<encoder> on a small timm encoder."""

import pytest
import torch

from vfmtok.encoders.vfm import Encoder, EncoderConfig
from vfmtok.errors import EvaluationError
from vfmtok.evaluation.encoder_distance import (
    EncoderDistance,
    EncoderStatistics,
    HeldOutDistances,
    encoder_features,
    open_encoder,
)
from vfmtok.losses.perceptual import EncoderPerceptual
from vfmtok.metrics.frechet import FeatureStatistics, RankDeficientWarning, frechet_distance

pytestmark = pytest.mark.filterwarnings("ignore:the frozen encoder")  # random weights will do


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder(EncoderConfig(name="tf_efficientnet_lite0", image_size=64))


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_feature_is_the_mean_of_the_last_level(encoder, images):
    expected = encoder(images.double().div(127.5).sub(1).float())[-1].mean(1)
    assert (encoder_features(encoder, images) - expected).abs().max() < 1e-5 * expected.abs().max()
    with pytest.raises(EvaluationError, match="uint8"):
        encoder_features(encoder, images.float())


def test_the_distance_bears_the_encoders_name(encoder, images):
    statistics, reference = EncoderStatistics(encoder), FeatureStatistics(encoder.widths[-1])
    for block in images[:3].split(2):
        statistics.update(block)
    reference.update(encoder_features(encoder, images[3:]))
    with pytest.warns(RankDeficientWarning, match="fd@tf_efficientnet_lite0: 3 samples"):
        found = frechet_distance(statistics.compute(), reference.compute(), statistics.name)
    means = [encoder_features(encoder, part).double().mean(0) for part in (images[:3], images[3:])]
    assert found >= (means[0] - means[1]).square().sum().item() > 0


@pytest.mark.filterwarnings("ignore::vfmtok.metrics.frechet.RankDeficientWarning")
def test_distances_to_held_out_images_are_those_of_their_statistics(encoder, images):
    distances = HeldOutDistances(encoder, images[:3].split(2))
    distances.add("the same", [images[:3]])
    distances.add("others", images[3:].split(1))
    same, others = distances.found.numbers
    assert others.name == "fd@tf_efficientnet_lite0, others" and "of 3 images against 3 held-out" in others.protocol
    reference = [FeatureStatistics(encoder.widths[-1]) for _ in range(2)]
    for statistics, part in zip(reference, (images[3:], images[:3]), strict=True):
        statistics.update(encoder_features(encoder, part))
    wanted = frechet_distance(*(statistics.compute() for statistics in reference))
    assert others.value == pytest.approx(wanted, rel=1e-6) and abs(same.value) < 1e-6 * others.value
    assert len(distances.found.warnings) == 4  # two sets of fewer images than features, and what each is compared with


def test_the_distance_of_two_images_is_the_perceptual_loss_of_each(images):
    """Whose mean over a batch it is: a value for every image."""
    torch.manual_seed(0)
    several = Encoder(EncoderConfig(name="tf_efficientnet_lite0", image_size=64, levels=(2, 3, 4))).eval()
    distance, (a, b) = EncoderDistance(several), (images.float() / 127.5 - 1).split(3)
    loss = EncoderPerceptual(several)
    with torch.no_grad():
        wanted = [loss(y[None], x[None]).item() for x, y in zip(a, b, strict=True)]
        assert distance(a, b).tolist() == pytest.approx(wanted, rel=1e-5) and min(wanted) > 0
        assert distance(a, a).abs().max() == 0
    assert "levels 2, 3, 4 at 64 px" in distance.protocol


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite1"])
def test_encoders_whose_weights_pip_installs_measure(name):
    last, every = open_encoder(name, "package"), open_encoder(name, "package", every_level=True)
    assert last.levels == (5,) and every.levels == (2, 3, 4, 5)
    assert last.config.weights_sha256 == every.config.weights_sha256
