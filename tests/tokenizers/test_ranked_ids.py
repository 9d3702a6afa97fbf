"""The second nearest codes, of every family with cosine quantizers."""

import pytest
import torch
import torch.nn.functional as F

import vfmtok

CASES = {
    "vqgan": ("configs/vqgan/vq16.yaml", ("image_size=64", "encoder.channels=32", "pixel_decoder.channels=32")),
    "hita": (
        "configs/hita_vqgan_ultra.yaml",
        ("encoder.name=test_vit", "encoder.image_size=64", "encoder.levels=[6]", "encoder.weights=random", "dim=64",
         "heads=2", "mlp_dim=64", "num_holistic=6", "image_size=64", "patch_encoder.channels=32",
         "pixel_decoder.channels=32"),
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def tokenizer(request, root):
    file, overrides = CASES[request.param]
    torch.manual_seed(0)
    return vfmtok.build_tokenizer(vfmtok.load_config(root / file, overrides)).eval()


def test_they_are_nearest_and_second_nearest(tokenizer):
    """By all distances in float64, every segment by its own codebook."""
    torch.manual_seed(1)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        found, encoding = tokenizer.ranked_ids(images, 2), tokenizer.encode(images)
    assert torch.equal(found[:, 0], encoding.ids) and found.shape[1] == 2
    if tokenizer.config.kind == "hita":
        parts = [
            (encoding.holistic_latents, tokenizer.holistic_quantizer),
            (encoding.patch_latents, tokenizer.patch_quantizer),
        ]
    else:
        parts = [(encoding.latents, tokenizer.quantizer)]
    nearest = []
    for latents, quantizer in parts:
        codes = F.normalize(quantizer.codebook.detach().double(), dim=-1)
        nearest.append((F.normalize(latents.double(), dim=-1) @ codes.T).topk(2, dim=-1).indices)  # (B,K,2)
    expected = torch.cat(nearest, dim=1).transpose(1, 2)
    assert (found == expected).float().mean() > 0.98  # float32 may take the other of two that are as near


def test_a_codebook_that_ranks_nothing_is_an_error(root):
    file, overrides = CASES["vqgan"]
    fsq = ("quantizer={kind: fsq, levels: [4, 4, 4]}",)
    tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(root / file, (*overrides, *fsq)))
    with pytest.raises(vfmtok.ConfigError, match="fsq rounds"):
        tokenizer.ranked_ids(torch.zeros(1, 3, 64, 64), 2)
