"""LlamaGen's VQ-16 and VQ-8 on golden data of the published code, and their names in and out."""

import golden_rule
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vfmtok
from vfmtok.tokenizers.contract import to_pixels


def close(found, expected, tolerance=1e-4):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def weights(case: str) -> dict[str, torch.Tensor]:
    state_dict = golden_rule.weights(f"llamagen/{case}_keys.json", f"{case}.")
    state_dict["quantize.codebook_used"].zero_()
    return state_dict


@pytest.fixture(scope="module", params=["vq16", "vq8"])
def case(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(case):
    root = golden_rule.GOLDEN.parents[1]
    config = vfmtok.load_config(root / f"configs/vqgan/{case}.yaml", ["tokenizer.quantizer.entropy_weight=0.1"])
    return vfmtok.load_released(vfmtok.build_tokenizer(config), weights(case))


def test_names_are_bijective(case, tokenizer):
    released, expected = vfmtok.to_released(tokenizer), weights(case)
    assert released.keys() == expected.keys()
    assert all(torch.equal(released[name], expected[name]) for name in expected)
    parameters = {"vq16": 71_883_403, "vq8": 70_109_835}[case]
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == parameters


def test_encoding_and_decoding(case, tokenizer):
    golden, size = golden_rule.load(f"llamagen/{case}.npz"), {"vq16": 128, "vq8": 64}[case]
    tokenizer.eval()
    with torch.no_grad():
        encoding = tokenizer.encode(golden_rule.image_for(case, 2, size))
        assert np.array_equal(encoding.ids, golden["ids"])
        close(encoding.latents.transpose(1, 2).reshape(2, 8, 8, 8), golden["latents"])
        decoded = tokenizer.decode_ids(encoding.ids)
        close(F.avg_pool2d(decoded, 8), golden["recon_pooled"])
        close(decoded[:, :, ::31], golden["recon_rows"])
        again = tokenizer.decode(torch.from_numpy(golden["random_ids"]).long())
        close(again[:, :, ::31], golden["random_recon_rows"])
        pixels = to_pixels(again, size * 5 // 8)[:, ::13].int()
        assert np.abs(pixels.numpy() - golden["random_uint8_rows"].astype(int)).max() <= 1


def test_training(case, tokenizer):
    golden, size = golden_rule.load(f"llamagen/{case}.npz"), 64
    tokenizer.train().zero_grad()
    images = golden_rule.image_for(f"{case}train", 2, size)
    out = tokenizer(images)
    mse = F.mse_loss(out.reconstruction, images)
    total = mse + sum(out.losses.values())
    for name in ("vq", "commit", "entropy"):
        close(out.losses[name].detach(), golden[f"train_{name}"])
    close(mse.detach(), golden["train_mse"])
    close(total.detach(), golden["train_total"])
    close(out.reconstruction.detach()[:, :, ::31], golden["train_recon_rows"])
    total.backward()
    # The published name of a tensor leads to its gradient: the map keeps the order of the tensors.
    ours = dict(tokenizer.named_parameters())
    names = {vfmtok.weights.name_maps.rename(name, tokenizer.released.pairs): name for name in ours}
    norms = golden["grad_norms"]
    for name, norm in zip(golden["grad_norm_names"].tolist(), norms.tolist(), strict=True):
        if norm > 1e-5 * norms.max():
            assert ours[names[name]].grad.norm().item() == pytest.approx(norm, rel=5e-4), name
