"""Several codebooks on golden data of VFM-VAE's published code, and against one cosine quantizer for each part."""

import golden_rule
import numpy as np
import torch

from vfmtok.quantizers.cosine import CosineConfig, CosineQuantizer
from vfmtok.quantizers.multi_codebook import MultiCodebookConfig, MultiCodebookQuantizer


def close(found, expected):
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape
    assert (found.detach() - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_golden_data():
    golden = golden_rule.load("vfmvae/discrete.npz")
    config = MultiCodebookConfig(codebooks=4, codebook_size=64, channels=16, entropy_weight=1.0)
    quantizer = MultiCodebookQuantizer(config).train()
    for index, part in enumerate(quantizer.codebooks):
        rows = golden_rule.tensor_for(f"vfmvae_quant.codebooks.{index}.codebook.weight", (64, 4))
        part.codebook.data.copy_(rows)
    features = (2 * golden_rule.tensor_for("token.noise.quant", (2, 25, 16))).requires_grad_()
    found = quantizer(features)
    close(found.codes, golden["codes"])
    assert np.array_equal(found.ids.numpy(), golden["indices"])
    vq = found.losses["vq"] + found.losses["commit"]
    close(vq, golden["vq"])
    close(found.losses["entropy"], golden["entropy"])
    counts = torch.stack([found.ids[:, part].flatten().bincount(minlength=64) for part in range(4)])
    used = (counts / counts.sum(1, keepdim=True) > 0.01 / 64).float().mean() * 100
    close(used, golden["usage_percent"])
    codes, index = found.codes, torch.arange(16.0)
    (0.1 * codes.square().sum() + 0.01 * (codes * index).sum() + vq + found.losses["entropy"]).backward()
    close(features.grad, golden["grad_features"])
    for index, part in enumerate(quantizer.codebooks):
        close(part.codebook.grad, golden[f"grad_codebook{index}"])


def test_each_part_is_quantized_alone():
    torch.manual_seed(0)
    quantizer = MultiCodebookQuantizer(MultiCodebookConfig(codebooks=3, codebook_size=16, channels=12)).eval()
    features = torch.randn(2, 5, 12)
    found = quantizer(features)
    assert torch.equal(quantizer.lookup(found.ids), found.codes)
    for index in range(3):
        one = CosineQuantizer(CosineConfig(codebook_size=16, code_dim=4)).eval()
        one.codebook.data.copy_(quantizer.codebooks[index].codebook)
        alone = one(features[..., 4 * index : 4 * index + 4])
        assert torch.equal(alone.ids, found.ids[:, index])
        assert torch.equal(alone.codes, found.codes[..., 4 * index : 4 * index + 4])
