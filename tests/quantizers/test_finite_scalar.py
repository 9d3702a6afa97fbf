"""Finite scalar quantization beside its definition, one number at a time."""

import math

import pytest
import torch

import vfmtok
from vfmtok.config import config_from_dict
from vfmtok.quantizers.finite_scalar import SLACK, FiniteScalarConfig, FiniteScalarQuantizer

LEVELS = (2, 3, 5, 8)
SIZE = 240


def make_quantizer(levels=LEVELS) -> FiniteScalarQuantizer:
    return FiniteScalarQuantizer(FiniteScalarConfig(levels=levels))


def test_written_out():
    """Squash, round, count: for each number by itself, in Python's floats."""
    latents = 3 * torch.randn(2, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = make_quantizer().eval()(latents)
    for token, row in enumerate(latents.flatten(0, 1).tolist()):
        place, code = 0, []
        for value, count in reversed(list(zip(row, LEVELS, strict=True))):
            half, shift = (count - 1) * (1 + SLACK) / 2, 0 if count % 2 else 0.5
            integer = round(math.tanh(value + math.atanh(shift / half)) * half - shift)
            place = place * count + integer + count // 2
            code.insert(0, integer / (count // 2))
        assert out.ids.flatten()[token] == place
        assert out.codes.flatten(0, 1)[token].tolist() == pytest.approx(code)


def test_every_id_has_its_own_code_and_back():
    quantizer = make_quantizer().eval()
    ids = torch.arange(SIZE)[None]  # (1,V)
    codes = quantizer.lookup(ids)
    assert len(codes[0].unique(dim=0)) == SIZE and codes.min() == -1 and codes.max() == 1
    half = (quantizer.levels - 1) * (1 + SLACK) / 2
    offset = (quantizer.levels % 2 == 0) * 0.5
    latents = ((codes * (quantizer.levels // 2) + offset) / half).atanh() - (offset / half).atanh()  # bound's inverse
    assert torch.equal(quantizer(latents).ids, ids)


def test_gradients_pass_straight_through_the_rounding():
    quantizer = make_quantizer()
    latents = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(2))
    (quantizer(latents).codes * weights).sum().backward()
    found, latents.grad = latents.grad, None
    (quantizer.bound(latents) / (quantizer.levels // 2) * weights).sum().backward()
    assert torch.equal(found, latents.grad)
    quantizer.continuous = True
    assert torch.equal(quantizer(latents).codes, quantizer.bound(latents) / (quantizer.levels // 2))


def test_a_tokenizer_of_it_decodes_its_ids(root):
    levels = ["quantizer.kind=fsq", "quantizer.levels=[4,4,4]", "quantizer.codebook_size=64", "quantizer.code_dim=3"]
    tokenizer = vfmtok.VFMTok(vfmtok.load_config(root / "configs/tiny.yaml", levels)).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(tokenizer.decode_ids(tokenizer.encode(images).ids), tokenizer(images).reconstruction)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosine", "levels": [8, 8]}, "unknown key 'quantizer.levels'"),
        ({"kind": "fsq", "levels": [8, 1]}, "2 or more"),
        ({"kind": "fsq", "levels": [8, 8], "codebook_size": 65}, "must be 64"),
        ({"kind": "fsq", "levels": [8, 8], "code_dim": 12}, "code_dim"),
        ({"kind": "fsq", "entropy_weight": 0.5}, "entropy_weight"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(vfmtok.ConfigError, match=message):
        config_from_dict({"quantizer": settings}, vfmtok.VFMTokConfig)
