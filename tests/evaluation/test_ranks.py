"""Every metric on 2 gloo processes and at batch 1, 7 and 64, against one process and one batch."""

import pytest
import ranks
import torch

from vfmtok.errors import EvaluationError
from vfmtok.evaluation.image_sources import batches, open_images
from vfmtok.metrics.feature_bank import FeatureBank
from vfmtok.metrics.frechet import FeatureStatistics, frechet_distance
from vfmtok.metrics.inception_score import InceptionScore
from vfmtok.metrics.kernel_distance import kernel_distance
from vfmtok.metrics.pixels import PixelMetrics
from vfmtok.metrics.precision_recall import precision_recall
from vfmtok.metrics.usage import CodeCounter

COUNT = 131  # divisible by nothing


def measure(rank, world_size, batch):
    """All metrics of 131 small images, whose features are simple functions of their pixels."""
    images = torch.randint(0, 256, (COUNT, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    project = torch.randn(432, 9, generator=torch.Generator().manual_seed(1)) / 20
    statistics, bank, score = FeatureStatistics(9), FeatureBank(COUNT), InceptionScore(COUNT, 9)
    pixels, usage = PixelMetrics(("psnr", "ssim", "ssim_data_range_2")), CodeCounter(512)
    for block, indices in batches(open_images(images), batch, rank, world_size):
        features = (block.flatten(1).double() / 255 @ project.double()).float()
        statistics.update(features)
        bank.update(features, indices)
        score.update(features.softmax(1), indices)
        pixels.update(block, block // 2 + 40)
        usage.update(block.flatten(1)[:, :16].long())
    gaussian, features, used = statistics.compute(), bank.compute(), usage.compute()
    other = features + 0.8 * torch.randn(COUNT, 9, generator=torch.Generator().manual_seed(2))
    reference = FeatureStatistics(9)
    reference.update(other[rank::world_size])
    return {
        "fid": frechet_distance(gaussian, reference.compute()),
        "is": score.compute().mean,
        "kid": kernel_distance(features, other, subsets=5, subset_size=50).mean,
        **precision_recall(features, other)._asdict(),
        **pixels.compute(),
        "usage": used.usage,
        "perplexity": used.perplexity,
        "count": gaussian.count,
    }


def _in_batches(rank):
    return [measure(rank, 2, batch) for batch in (1, 7, 64)]


@pytest.fixture(scope="module")
def whole():
    return measure(0, 1, COUNT)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_change_nothing(whole, batch):
    assert measure(0, 1, batch) == pytest.approx(whole, rel=1e-6)
    assert whole["count"] == COUNT and 0 < whole["recall"] < 1


def test_two_processes_change_nothing(whole, tmp_path):
    for results in ranks.run(_in_batches, tmp_path):
        for found in results:
            assert found == pytest.approx(whole, rel=1e-6)


def test_a_rank_without_samples(tmp_path):
    """One image on two ranks: the first has none, and still takes part in every sum."""
    for found in ranks.run(_lonely, tmp_path):
        assert found == [2, [0.0, 1.0, 2.0], [[0.0, 1.0, 2.0]], 0.25]


def _lonely(rank):
    statistics, bank, usage = FeatureStatistics(3), FeatureBank(1), CodeCounter(8)
    if rank:
        statistics.update(torch.arange(3.0).repeat(2, 1))
        bank.update(torch.arange(3.0)[None], torch.zeros(1, dtype=torch.int64))
        usage.update(torch.tensor([0, 1]))
    gaussian = statistics.compute()
    return [gaussian.count, gaussian.mean.tolist(), bank.compute().tolist(), usage.compute().usage]


def test_missing_and_repeated_samples_are_noticed():
    bank = FeatureBank(4)
    bank.update(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    with pytest.raises(EvaluationError, match="3 features of 2 different samples"):
        bank.compute()
