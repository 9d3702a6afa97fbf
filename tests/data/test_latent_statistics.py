"""Latent statistics beside NumPy's over all values at once."""

import numpy as np
import pytest
import ranks
import torch

from vfmtok.data.latent_statistics import LatentStatistics, StatisticsSum, statistics_of
from vfmtok.errors import DataError, WeightsError


def latents(count: int = 37) -> torch.Tensor:
    """(n,3,2,4) with another mean and deviation at every place, and means far from 0."""
    values = np.random.default_rng(0).normal(size=(count, 3, 2, 4))
    places = np.arange(24).reshape(3, 2, 4)
    return torch.from_numpy(1000 + 10 * places + (1 + places) * values)


@pytest.mark.parametrize(("per", "axes"), [("channel", (0, 2, 3)), ("position", (0,))])
def test_chunks_give_what_numpy_gives_of_all_at_once(per, axes):
    values = latents()
    found = statistics_of([values[:1], values[1:20], values[20:20], values[20:]], (3, 2, 4), per)
    shape = (3, 1, 1) if per == "channel" else (3, 2, 4)
    mean, std = values.numpy().mean(axes).reshape(shape), values.numpy().std(axes, ddof=1).reshape(shape)
    assert found.count == 37 and found.mean.dtype == found.std.dtype == torch.float32
    np.testing.assert_array_equal(found.mean.numpy(), mean.astype(np.float32))
    np.testing.assert_allclose(found.std.numpy(), std, rtol=1e-7)


def test_a_large_mean_costs_no_digits():
    values = torch.tensor([1e8, 1e8 + 1, 1e8 + 2], dtype=torch.float64).reshape(3, 1, 1, 1)
    assert statistics_of(values.split(1), (1, 1, 1)).std.item() == 1


@pytest.mark.parametrize("per", ["channel", "position"])
def test_moments_give_the_statistics_of_what_is_drawn_from_them(per):
    means, rng = latents(50) / 100, torch.Generator().manual_seed(1)
    std = 0.1 + torch.rand(means.shape, generator=rng, dtype=torch.float64)
    found = StatisticsSum((3, 2, 4))
    found.add(means[:30], std[:30])
    found.add(means[30:], std[30:])
    assert std.min() >= 0.1  # what is given stays as it is
    drawn = StatisticsSum((3, 2, 4))
    for _ in range(400):
        drawn.add(means + std * torch.randn(means.shape, generator=rng, dtype=torch.float64))
    found, drawn = found.statistics(per), drawn.statistics(per)
    assert found.count == 50
    torch.testing.assert_close(found.mean, drawn.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(found.std, drawn.std, atol=0, rtol=0.03)


def test_statistics_of_channels_follow_from_those_of_places():
    places, channels = (statistics_of([latents(5)], (3, 2, 4), per) for per in ("position", "channel"))
    found = places.per_channel()
    assert (places.per, channels.per, found.count) == ("position", "channel", 5)
    torch.testing.assert_close(found.mean, channels.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.std, channels.std, rtol=1e-5, atol=0)
    published = LatentStatistics(places.mean, places.std, 0).per_channel()  # of unknown many
    expected = (places.std.square() + (places.mean - found.mean).square()).mean((1, 2)).sqrt()
    torch.testing.assert_close(published.std.flatten(), expected, rtol=1e-5, atol=0)


def test_they_are_saved_and_come_back(tmp_path):
    found = statistics_of([latents()], (3, 2, 4), "position")
    found.save(tmp_path / "stats.safetensors")
    back = LatentStatistics.load(tmp_path / "stats.safetensors")
    assert back.count == 37 and torch.equal(back.mean, found.mean) and torch.equal(back.std, found.std)
    with pytest.raises(WeightsError, match="no weight file"):
        LatentStatistics.load(tmp_path / "other.safetensors")
    LatentStatistics(back.mean, back.std * 0, 3).save(tmp_path / "zero.safetensors")
    with pytest.raises(DataError, match="not above 0"):
        LatentStatistics.load(tmp_path / "zero.safetensors")


def test_what_cannot_be_normalised_is_refused():
    values = latents()
    values[3, 1, 0, 2] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        statistics_of([values], (3, 2, 4))
    with pytest.raises(DataError, match="two at least"):
        statistics_of([latents(1)], (3, 2, 4))
    with pytest.raises(DataError, match="same value"):
        statistics_of([torch.ones(5, 3, 2, 4)], (3, 2, 4), "position")


def _merged(rank: int) -> dict[str, torch.Tensor]:
    found = statistics_of([latents()[rank::2]], (3, 2, 4), "position")
    return {"mean": found.mean, "std": found.std, "count": torch.tensor(found.count)}


def test_two_processes_find_what_one_finds(tmp_path):
    alone = statistics_of([latents()], (3, 2, 4), "position")
    first, second = ranks.run(_merged, tmp_path)
    assert first["count"] == 37 and all(torch.equal(first[name], second[name]) for name in first)
    torch.testing.assert_close(first["mean"], alone.mean, atol=0, rtol=1e-6)
    torch.testing.assert_close(first["std"], alone.std, atol=0, rtol=1e-6)
