"""Hita: what holds for any weights."""

import pytest
import torch

import vfmtok
from vfmtok.config import config_from_dict
from vfmtok.tokenizers.hita.config import HitaConfig

TINY = {
    "image_size": 32, "dim": 64, "num_holistic": 6, "depth": 1, "heads": 2, "mlp_dim": 64, "reconstruct_features": True,
    "encoder": {"name": "test_vit", "image_size": 64, "levels": [6], "resize": "blur"},
    "patch_encoder": {"channels": 32, "multipliers": [1, 1, 1], "res_blocks": 1},
    "holistic_quantizer": {"codebook_size": 32, "code_dim": 6}, "patch_quantizer": {"codebook_size": 48, "code_dim": 4},
    "pixel_decoder": {"channels": 32, "multipliers": [1, 1, 1], "res_blocks": 1, "coarse_attention": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def hita():
    torch.manual_seed(0)
    return vfmtok.build_tokenizer(config_from_dict(TINY, HitaConfig)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_decoding_its_ids_is_the_reconstruction(hita, images):
    with torch.no_grad():
        ids = hita.encode(images).ids
        assert ids.shape == (2, 6 + 64) and str(hita.code) == "6 tokens of 32 codes + 64 tokens of 48 codes"
        assert torch.equal(hita.decode(ids), hita(images).reconstruction)


def test_the_shift_hides_the_last_patches(hita, images):
    """Cell i of the map sees patches 0...i-4: the last four touch no pixel, the one before only the last cell."""
    with torch.no_grad():
        holistic, patches = torch.randn(1, 6, 64), torch.randn(1, 64, 8, 8)
        whole = hita.fusion(holistic, patches).flatten(2)
        for place, cells in ((63, []), (60, []), (59, [63]), (57, [61, 62, 63])):
            changed = patches.clone().flatten(2)
            changed[:, :, place] += 1
            found = hita.fusion(holistic, changed.unflatten(2, (8, 8))).flatten(2)
            assert (found != whole).any(1)[0].nonzero().flatten().tolist() == cells


def test_features_come_from_the_holistic_codes_alone(hita, images):
    hita.train()
    try:
        out = hita(images)
        out.feature_reconstruction.square().mean().backward()
        assert hita.from_patch_codes.weight.grad is None
        assert hita.from_holistic_codes.weight.grad.abs().max() > 0
        assert out.feature_reconstruction.shape == out.feature_target.shape
        hita.zero_grad()
        out = hita(images)
        (out.reconstruction.mean() + sum(out.losses.values())).backward()
        assert hita.from_patch_codes.weight.grad.abs().max() > 0
    finally:
        hita.eval()


def test_ids_out_of_range_are_named(hita):
    with pytest.raises(ValueError, match="square number"):
        hita.decode(torch.zeros(1, 6 + 63, dtype=torch.int64))
    ids = torch.zeros(1, 70, dtype=torch.int64)
    ids[0, 0] = 32  # fine for a patch, not for a holistic token
    with pytest.raises(ValueError, match=r"\[0,32\)"):
        hita.decode(ids)
