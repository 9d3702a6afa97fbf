"""fd@<encoder> on a small timm encoder."""

import pytest
import torch

from vfmtok.encoders.vfm import Encoder, EncoderConfig
from vfmtok.errors import EvaluationError
from vfmtok.evaluation.encoder_distance import EncoderStatistics, encoder_features
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
