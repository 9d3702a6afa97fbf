"""The cosine quantizer: published outputs and gradients, and its definition written out slowly."""

import golden_rule
import pytest
import torch
import torch.nn.functional as F

from vfmtok.errors import ConfigError
from vfmtok.quantizers import ranked_ids
from vfmtok.quantizers.cosine import CosineConfig, CosineQuantizer
from vfmtok.quantizers.finite_scalar import FiniteScalarConfig, FiniteScalarQuantizer


def make_quantizer(size: int, dim: int, entropy_weight: float = 0.0) -> CosineQuantizer:
    quantizer = CosineQuantizer(CosineConfig(codebook_size=size, code_dim=dim, entropy_weight=entropy_weight))
    with torch.no_grad():
        quantizer.codebook.copy_(golden_rule.tensor_for("slot_quantize.embedding.weight", (size, dim)))
    return quantizer


def as_tokens(z) -> torch.Tensor:
    return torch.as_tensor(z).flatten(2).transpose(1, 2)  # (B,C,H,W) -> (B,H*W,C)


def test_published_forward_and_backward():
    golden = golden_rule.load("quantizer.npz")
    quantizer = make_quantizer(64, 12, entropy_weight=0.1)
    z = as_tokens(golden["z"]).requires_grad_()
    out = quantizer(z)
    assert torch.equal(out.ids.flatten(), torch.as_tensor(golden["indices"]))
    assert torch.allclose(out.codes, as_tokens(golden["zq"]), atol=1e-6)
    for name in ("vq", "commit", "entropy"):
        assert out.losses[name].item() == pytest.approx(float(golden[name]), abs=1e-6)

    loss = 0.1 * out.codes.square().sum() + 0.01 * (out.codes * torch.arange(12)).sum() + sum(out.losses.values())
    loss.backward()
    assert torch.allclose(z.grad, as_tokens(golden["grad_z"]), atol=1e-6)
    assert torch.allclose(quantizer.codebook.grad, torch.as_tensor(golden["grad_codebook"]), atol=1e-6)


def test_published_ids_of_the_large_codebook():
    golden = golden_rule.load("quantizer_large.npz")
    out = make_quantizer(16384, 12).eval()(as_tokens(golden["z"]))
    assert torch.equal(out.ids.flatten(), torch.as_tensor(golden["indices"]).long())
    assert torch.allclose(out.codes[:, ::16], as_tokens(golden["zq"]), atol=1e-6)


@pytest.mark.parametrize("size", [64, 16384])
def test_published_second_nearest_codes(size):
    golden = golden_rule.load("rar/quantizer_topk.npz")
    z = torch.as_tensor(golden[f"z_{size}"])
    quantizer = make_quantizer(size, 12)
    found = quantizer.ranked(z, 2)  # (B,2,K)
    assert torch.equal(found, torch.as_tensor(golden[f"top2_{size}"]).long())
    assert torch.equal(found[:, 0], quantizer(z).ids)


def test_ranks_are_those_of_all_distances(monkeypatch):
    """Every code once, from the nearest to the farthest, whatever the blocks."""
    monkeypatch.setattr("vfmtok.quantizers.cosine._SCORES_PER_BLOCK", 35)
    quantizer = make_quantizer(10, 4)
    z = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    codes = F.normalize(quantizer.codebook.detach().double(), dim=-1)
    distances = (F.normalize(z.double(), dim=-1)[:, :, None] - codes).norm(dim=-1)  # (B,K,V)
    assert torch.equal(quantizer.ranked(z, 10), distances.argsort(-1).transpose(1, 2))


def test_a_quantizer_that_rounds_ranks_nothing():
    latents = torch.randn(1, 3, 2)
    with pytest.raises(ConfigError, match="fsq rounds and has no second nearest code"):
        ranked_ids(FiniteScalarQuantizer(FiniteScalarConfig(levels=(4, 4))), latents, 2)
    with pytest.raises(ConfigError, match="from 1 to the codebook's size 10"):
        ranked_ids(make_quantizer(10, 2), latents, 11)


def test_entropy_loss_written_out():
    quantizer = make_quantizer(10, 4).double()
    z = F.normalize(torch.randn(1, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)
    codebook = F.normalize(quantizer.codebook.detach(), dim=-1)
    rows = []
    for latent in z[0]:
        distances = torch.stack([((latent - code) ** 2).sum() for code in codebook])
        rows.append(torch.softmax(-distances / 0.01, dim=0))
    p = torch.stack(rows)
    per_sample = -torch.where(p > 0, p * p.log(), 0).sum(1).mean()
    mean = p.mean(0)
    expected = per_sample + (mean * (mean + 1e-5).log()).sum()
    assert quantizer.entropy_loss(z).item() == pytest.approx(expected.item(), rel=1e-9)


def test_blocks_do_not_change_ids(monkeypatch):
    """A codebook whose scores need many blocks gives the ids of one big product."""
    quantizer = make_quantizer(50, 6)
    z = F.normalize(torch.randn(3, 11, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = (z @ F.normalize(quantizer.codebook, dim=-1).t()).argmax(-1)
    monkeypatch.setattr("vfmtok.quantizers.cosine._SCORES_PER_BLOCK", 70)
    assert torch.equal(quantizer.nearest(z), expected)


def test_float32_under_autocast():
    quantizer = make_quantizer(64, 12)
    z = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
    expected = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(z)
    assert out.codes.dtype == torch.float32
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.losses["vq"], expected.losses["vq"])


def test_eval_codes_are_the_codebook_rows():
    quantizer = make_quantizer(64, 12).eval()
    out = quantizer(torch.randn(1, 5, 12))
    assert torch.equal(out.codes, quantizer.lookup(out.ids))
