"""The region sampler: what a query may read, and in which order queries see each other."""

import pytest
import torch

from vfmtok.layers.region_sampler import RegionSampler, SamplerConfig, WindowedAttention

WIDTHS, GRIDS = (10, 12), ((6, 6), (3, 3))


def make_sampler(**config) -> RegionSampler:
    torch.manual_seed(0)
    options = {"num_tokens": 9, "depth": 2, "heads": 4, "points": 2, "mlp_dim": 32} | config
    return RegionSampler(SamplerConfig(**options), dim=16, widths=WIDTHS, grids=GRIDS)


def make_features(batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, h * w, c, generator=generator) for (h, w), c in zip(GRIDS, WIDTHS, strict=True)]


def test_queries_lie_on_their_grid():
    references = make_sampler().references.reshape(3, 3, 2)
    for i in range(3):
        for j in range(3):
            assert references[i, j].tolist() == pytest.approx([(j + 0.5) / 3, (i + 0.5) / 3])


@pytest.mark.parametrize("attention", ["deformable", "windowed"])
def test_a_query_sees_only_earlier_queries(attention):
    """Changing the anchor of query 5 leaves the tokens before it alone, and changes it and later ones."""
    sampler, features = make_sampler(attention=attention), make_features()
    before = sampler(features)
    with torch.no_grad():
        sampler.queries[0, 5] += torch.randn(16)
    changed = (sampler(features) != before).any(dim=-1)
    assert not changed[:, :5].any()
    assert changed[:, 5:].all()


def test_every_level_is_read():
    sampler, features = make_sampler(), make_features()
    before = sampler(features)
    for level in range(2):
        others = list(features)
        others[level] = features[level].flip(1)
        assert not torch.allclose(sampler(others), before)


def test_window_bounds_what_a_query_reads():
    """Centre query of a 3x3 grid on a 6x6 map, window 2: exactly the four central cells have a gradient."""
    attention = WindowedAttention(dim=16, heads=4, window=2)
    references = make_sampler().references
    maps = torch.randn(1, 36, 16, requires_grad=True)
    attention(torch.randn(1, 9, 16), references, maps, [(6, 6)])[0, 4].sum().backward()
    read = maps.grad.abs().sum(-1).reshape(6, 6) > 0
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[2:4, 2:4] = True
    assert torch.equal(read, expected)


@pytest.mark.parametrize("side", [1, 4, 5, 24])
def test_the_smallest_window_is_never_empty(side):
    attention = WindowedAttention(dim=16, heads=4, window=1)
    maps = torch.randn(1, side * side, 16)
    assert attention(torch.randn(1, 9, 16), make_sampler().references, maps, [(side, side)]).isfinite().all()


def test_unequal_levels_are_joined_on_the_largest_grid():
    sampler = make_sampler(attention="windowed")
    assert sampler.grids == ((6, 6),)
    assert sampler.projectors[0][0].in_features == sum(WIDTHS)
    assert sampler.project(make_features()).shape == (2, 36, 16)
