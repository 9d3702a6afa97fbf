"""Usage, k-means and revival, beside NumPy and constructed cases."""

from types import SimpleNamespace

import numpy as np
import pytest
import ranks
import torch
import torch.nn.functional as F

from vfmtok.code import Ids, Segment
from vfmtok.errors import VFMTokError
from vfmtok.quantizers.cosine import CosineConfig, CosineQuantizer
from vfmtok.training.codebook_care import CodebookCare, spherical_kmeans
from vfmtok.training.recipe import CodebookConfig


def make_care(size=32, dim=4, tokens=16, **settings):
    torch.manual_seed(0)
    quantizer = CosineQuantizer(CosineConfig(codebook_size=size, code_dim=dim))
    optimizer = torch.optim.AdamW(quantizer.parameters(), fused=True)
    average = quantizer.codebook.detach().clone()
    code, config = Ids((Segment(tokens, size),)), CodebookConfig(**settings)
    return CodebookCare([quantizer], [[average]], optimizer, config, 1, 3, torch.device("cpu"), code), average


def counted(care: CodebookCare, step: int, ids: list[torch.Tensor], latents: list[torch.Tensor]) -> None:
    """A step of as many passes as there are ids (b,K)."""
    for part, vectors in zip(ids, latents or [None] * len(ids), strict=True):
        care.note(SimpleNamespace(ids=part, latents=vectors))
    care.after_step(step)


def test_usage_of_windows():
    """Windows of 3 steps: the share of codes seen, and exp of the entropy."""
    care, _ = make_care(window=48)
    random = np.random.default_rng(0)
    ids = random.integers(0, 9, size=(7, 2, 8))
    assert care.usage() == [] and care.numbers() == {}
    for step in range(7):
        counted(care, step, list(torch.from_numpy(ids[step, :, None])), [])
    counts = np.bincount(ids[3:6].ravel(), minlength=32)  # the last whole window
    p = counts[counts > 0] / counts.sum()
    (usage,) = care.usage()
    assert usage.used == pytest.approx((counts > 0).mean())
    assert usage.perplexity == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_segments_are_counted_apart():
    """Id 3 of the first codebook is not id 3 of the second."""
    code = Ids((Segment(2, 8), Segment(3, 4)))
    care = CodebookCare([], [], None, CodebookConfig(window=2), 1, 0, torch.device("cpu"), code)
    counted(care, 0, [torch.tensor([[0, 3, 3, 3, 1]])], [])
    assert [usage.used for usage in care.usage()] == [2 / 8, 2 / 4]
    numbers = care.numbers()
    assert numbers["codebook/usage"] == 2 / 8 and numbers["codebook/usage_1"] == 2 / 4
    assert numbers["codebook/perplexity_0"] == pytest.approx(2)


def test_what_a_tokenizer_does_not_give_is_one_line():
    care, _ = make_care(revive=True)
    ids = torch.zeros(1, 16, dtype=torch.int64)
    with pytest.raises(VFMTokError, match="latents"):
        care.note(SimpleNamespace(ids=ids, latents=None))
    with pytest.raises(VFMTokError, match="ids"):
        care.note(SimpleNamespace(ids=None, latents=None))


def test_unused_codes_become_latents():
    care, average = make_care(window=16, revive=True)
    codebook = care.quantizers[0].codebook
    codebook.grad = torch.ones_like(codebook)
    care.optimizer.step()
    before, average_before = codebook.detach().clone(), average.clone()
    latents = torch.randn(1, 16, 4)
    used = torch.arange(16) % 5
    counted(care, 0, [used[None]], [latents])
    unit = F.normalize(latents[0], dim=-1)
    for table, old in ((codebook.detach(), before), (average, average_before)):
        assert torch.equal(table[:5], old[:5])
        nearest = (table[5:] @ unit.t()).max(dim=1).values
        assert torch.allclose(nearest, torch.ones(27), atol=1e-6)  # each is one of the latents
    assert len(torch.unique(codebook[5:].detach(), dim=0)) > 8  # and not all the same one
    state = care.optimizer.state[codebook]
    assert (state["exp_avg"][5:] == 0).all() and (state["exp_avg"][:5] != 0).all()


def test_latents_that_are_not_finite_revive_nothing():
    """Half a step's latents are NaN, as fp16 may leave them: its update is skipped, and so are these."""
    care, average = make_care(window=16, revive=True)
    before = care.quantizers[0].codebook.detach().clone()
    latents = torch.randn(1, 16, 4)
    latents[0, ::2] = float("nan")
    counted(care, 0, [torch.zeros(1, 16, dtype=torch.long)], [latents])
    for table in (care.quantizers[0].codebook.detach(), average):
        assert torch.isfinite(table).all() and not torch.equal(table[1:], before[1:])


def test_nothing_is_counted_or_revived_before_quantization():
    care, _ = make_care(window=16, continuous_steps=2, revive=True)
    before = care.quantizers[0].codebook.detach().clone()
    for step in range(2):
        care.before_step(step)
        assert care.quantizers[0].continuous
        counted(care, step, [torch.zeros(1, 16, dtype=torch.long)], [torch.randn(1, 16, 4)])
    assert torch.equal(care.quantizers[0].codebook, before) and care.usage() == []
    care.before_step(2)
    assert not care.quantizers[0].continuous


def test_continuous_codes_are_the_latents():
    quantizer = CosineQuantizer(CosineConfig(codebook_size=8, code_dim=4))
    quantizer.continuous = True
    z = torch.randn(2, 5, 4, requires_grad=True)
    out = quantizer(z)
    assert torch.equal(out.codes, F.normalize(z, dim=-1)) and sum(out.losses.values()) == 0
    (out.codes.sum() + sum(out.losses.values())).backward()
    assert (quantizer.codebook.grad == 0).all() and z.grad.abs().sum() > 0
    quantized = quantizer.eval()(z).codes  # evaluation always quantizes
    assert torch.allclose(quantized, quantizer.lookup(out.ids))


def test_kmeans_finds_separate_clusters():
    torch.manual_seed(1)
    true = F.normalize(torch.randn(12, 8), dim=-1)
    labels = torch.arange(12).repeat(50)
    latents = 5 * F.normalize(true[labels] + 0.02 * torch.randn(600, 8), dim=-1)
    centres = spherical_kmeans(latents, 24, seed=0)
    assert torch.allclose(centres.norm(dim=1), torch.ones(24), atol=1e-5)
    best = (F.normalize(latents, dim=-1) @ centres.t()).max(dim=1).values
    assert best.min() > 0.95  # every latent has a centre near it


def test_kmeans_with_fewer_latents_than_codes():
    centres = spherical_kmeans(torch.randn(5, 3), 8, seed=0)
    assert centres.shape == (8, 3) and torch.isfinite(centres).all()


def revive_as_one_of_two(rank: int):
    care, average = make_care(tokens=32, window=32, revive=True)
    latents = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(5))
    ids = torch.arange(32).view(2, 16) % torch.tensor([[3], [7]])
    counted(care, 0, [ids[rank : rank + 1]], [latents[rank : rank + 1]])
    return torch.cat([care.quantizers[0].codebook.detach(), average])


def test_two_processes_revive_as_one(tmp_path):
    care, average = make_care(tokens=32, window=32, revive=True)
    latents = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(5))
    ids = torch.arange(32).view(2, 16) % torch.tensor([[3], [7]])
    counted(care, 0, [ids], [latents])
    one = torch.cat([care.quantizers[0].codebook.detach(), average])
    for other in ranks.run(revive_as_one_of_two, tmp_path):
        assert torch.equal(other, one)
