"""VFMAE on golden data of the published code: names and sizes, and (slow) the whole tokenizer."""

import golden_rule
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vfmtok
from vfmtok.layers.resize import resize_square
from vfmtok.training.objective import TokenizerObjective
from vfmtok.training.recipe import AdversarialConfig, LossConfig

FILE = golden_rule.GOLDEN.parents[1] / "configs/vfmae/vfmae.yaml"
IS_ZERO = ("k_proj.bias", "decoder.mid.1.k.bias")  # gradients that are rounding errors


def close(found, expected, tolerance=1e-4):
    found, expected = np.asarray(found.detach()), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def golden():
    return golden_rule.load("vfmae/vfmae_full.npz")


def test_names_and_sizes():
    with torch.device("meta"):
        tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(FILE))
    published = {name: list(tensor.shape) for name, tensor in vfmtok.to_released(tokenizer).items()}
    assert published == golden_rule.shapes("vfmae/vfmae_keys.json")
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in tokenizer.named_children()}
    del counts["encoder"]
    projection = sum(p.numel() for p in tokenizer.decoder.from_latents.parameters())
    assert projection == 16_896
    assert counts == {
        "sampler": 20_377_856,
        "bottleneck": 17_440,
        "decoder": 16_577_392 + projection,
        "pixel_decoder": 40_474_499,
    }
    assert sum(counts.values()) == 77_464_083
    assert tokenizer.code == vfmtok.Latents((32, 16, 16))


def test_the_recipe_trains_this_model(root):
    recipe = vfmtok.load_config(root / "configs/vfmae/tokenizer.yaml", ["encoder.weights=none"])
    assert recipe == vfmtok.load_config(FILE)


def test_the_published_resize_is_plain_bicubic_here(golden):
    images = golden_rule.image_for("vfmae_full", 2, 256)
    close(((resize_square(images, 224, "blur").clamp(-1, 1) + 1) / 2)[:, :, ::75, ::4], golden["resized"], 1e-6)
    plain = F.interpolate(images, (224, 224), mode="bicubic", align_corners=True)
    assert torch.equal(resize_square(images, 224, "blur"), plain)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(FILE, ["decoder.attention_dropout=0"]))
    tokenizer.encoder.load_official(golden_rule.dinov2_weights())
    return vfmtok.load_released(tokenizer, golden_rule.weights("vfmae/vfmae_keys.json", "vfmae."))


@pytest.mark.slow
def test_the_whole_tokenizer(tokenizer, golden):
    with torch.no_grad():
        found = tokenizer.eval().encode(golden_rule.image_for("vfmae_full", 2, 256))
        for level in range(4):
            close(found.features[level][:, ::32, ::64], golden[f"feature_level{level}"], 1e-5)
            close(found.class_tokens[level][:, 0, ::16], golden[f"cls_level{level}"].reshape(2, -1), 1e-5)
        close(found.region_tokens[:, ::8, ::16], golden["region_tokens"])
        close(found.latents, golden["latents"])
        latents = torch.as_tensor(golden["latents"])
        decoded = tokenizer.decode(latents)
        close(F.avg_pool2d(decoded, 16), golden["recon_pooled"])
        close(decoded[:, :, ::85], golden["recon_rows"])
        difference = tokenizer.decode_to_uint8(latents)[:, ::37].numpy().astype(int) - golden["decoded_uint8_rows"]
        assert np.abs(difference).max() <= 1


@pytest.mark.slow
def test_the_training_pass(tokenizer, golden):
    """The training loop's own objective, with the mean squared error counted once; one image at a time, since every
    loss is a mean over images."""
    loss = LossConfig(pixel_weight=1.0, perceptual="none")
    objective = TokenizerObjective(loss, AdversarialConfig(), tokenizer, perceptual=None, discriminator=None)
    tokenizer.train()
    found, features = {"pixel": 0.0, "feature": 0.0, "total": 0.0}, []
    for image in golden_rule.image_for("vfmae_full", 2, 256).split(1):
        out = tokenizer(image)
        terms = objective(image, out)
        terms["total"] = sum(terms.values())
        (terms["total"] / 2).backward()
        found = {name: value + terms[name].item() / 2 for name, value in found.items()}
        features.append(out.feature_reconstruction.detach())
        del out, terms
    close(torch.cat(features)[:, ::32, ::64], golden["feature_recon"])
    for name, theirs in {"pixel": "mse", "feature": "feature_loss", "total": "total"}.items():
        assert found[name] == pytest.approx(float(golden[f"train_{theirs}"]), rel=1e-4), name
    parameters = {p.data_ptr(): p for p in tokenizer.parameters()}
    published, largest = vfmtok.to_released(tokenizer), golden["grad_norms"].max()
    assert set(golden["grad_norm_names"].tolist()) == published.keys()
    for name, norm in zip(golden["grad_norm_names"].tolist(), golden["grad_norms"].tolist(), strict=True):
        gradient = parameters[published[name].data_ptr()].grad.norm().item()
        if name.endswith(IS_ZERO):
            assert max(gradient, norm) <= 1e-5 * largest, name
        else:
            assert gradient == pytest.approx(norm, rel=5e-4), name
    assert all(p.grad is None for p in tokenizer.encoder.parameters())
