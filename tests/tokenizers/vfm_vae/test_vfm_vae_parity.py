"""VFM-VAE on golden data of the published code: the tiny model and its variants, and (slow) the full one."""

import golden_rule
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers.vfm_vae.tiny import DISCRETE, FOLDER, ROOT, TOWER, close, noise, rule_weights, tiny, variant

import vfmtok
from vfmtok.layers.resize import resize_by


def load(name: str) -> dict[str, np.ndarray]:
    return golden_rule.load(f"{FOLDER}/{name}.npz")


@pytest.fixture(scope="module")
def images():
    return golden_rule.image_for("vfmvae_tiny", 2, 64)


@torch.no_grad()
def test_the_tiny_model(images):
    golden, tokenizer = load("tiny_eval"), tiny()
    found, half = tokenizer.encode(images), tokenizer.encode(resize_by(images, 0.5))
    for index in range(3):
        close(found.features[index][:, ::16, ::4], golden[f"level{index}"])
        close(half.features[index][:, ::4, ::4], golden[f"half_level{index}"])
    maps = [level.transpose(1, 2).unflatten(2, (32, 32)) for level in found.features]
    for index, fused in enumerate(tokenizer.fusion.narrowed(maps)):
        close(fused.flatten(2).transpose(1, 2)[:, ::8, ::4], golden[f"fused{index}"])
    for encoding, name in ((found, "moments"), (half, "moments_half")):
        moments = torch.cat([encoding.posterior.mean, encoding.posterior.logvar], dim=1)
        close(moments, golden[name])
    assert found.latents is found.posterior.mean
    expanded = tokenizer.expand(found.latents)
    close(expanded[:, ::4, ::4, ::4], golden["expanded"])
    close(tokenizer.style(expanded), golden["style"])
    for index, injection in enumerate(tokenizer.decoder.injections):
        close(injection(expanded)[:, ::4], golden[f"z_conv{index}"])
    scales = tokenizer.decode_scales(found.latents)
    assert list(scales) == [8, 16, 32, 64]
    for side, image in scales.items():
        close(image, golden[f"image{side}_mean"])
    assert torch.equal(tokenizer.decode(found.latents), scales[64])
    sampled = found.posterior.sample(noise("tiny", found.latents.shape))
    close(tokenizer.decode_latents(sampled), golden["image64_sampled"])


@torch.no_grad()
@pytest.mark.parametrize(("name", "override"), [("conv", "projection=conv"), ("deep", "projection_layers=2")])
def test_variants(images, name, override):
    golden = load("tiny_variants")
    tokenizer = tiny(override, keys=f"tiny_{name}_keys")
    assert tokenizer.to_features is None and not tokenizer.config.decoder.noise
    found = tokenizer.encode(images).posterior
    close(torch.cat([found.mean, found.logvar], dim=1), golden[f"{name}_moments"])
    close(tokenizer.decode(found.mean)[:, :, ::3], golden[f"{name}_image"])


@torch.no_grad()
def test_the_discrete_model(images):
    golden = load("discrete")
    tokenizer = tiny(*DISCRETE, keys="tiny_discrete_keys")
    found = tokenizer.encode(images)
    rows = torch.as_tensor(golden["model_features"])  # (2,16,16,16)
    close(found.latents.unflatten(1, (4, 256)).transpose(2, 3).flatten(1, 2).unflatten(2, (16, 16)), rows)
    assert np.array_equal(found.ids.unflatten(1, (4, 256)).numpy(), golden["model_indices"])
    close(found.codes, golden["model_codes"])
    close(tokenizer.decode_ids(found.ids), golden["model_image"])
    assert tokenizer.code == vfmtok.Ids((vfmtok.Segment(256, 64, (16, 16)),) * 4)


@pytest.mark.parametrize(
    ("keys", "overrides"),
    [
        ("tiny_keys", ()),
        ("tiny_discrete_keys", DISCRETE),
        ("tiny_conv_keys", ("projection=conv",)),
        ("tiny_deep_keys", ("projection_layers=2",)),
    ],
)
def test_published_names_round_trip(keys, overrides):
    """Whatever variant a file holds, it comes out again bit by bit, the pooling head that nothing uses included."""
    tokenizer, weights = tiny(*overrides, keys=keys), rule_weights(variant(keys), "vfmvae_tiny.")
    again = vfmtok.to_released(tokenizer)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_a_model_becomes_the_variant_of_the_file():
    """One with noise and projection takes weights that have neither, and the reverse; to load twice is to load once."""
    tokenizer = tiny()
    assert tokenizer.config.decoder.noise and tokenizer.config.alignment
    stage3 = {n: t for n, t in vfmtok.to_released(tokenizer).items() if "noise_" not in n and "linear_proj" not in n}
    stage3 = {name: tensor.clone() for name, tensor in stage3.items()}
    vfmtok.load_released(tokenizer, stage3)
    assert not tokenizer.config.decoder.noise and not tokenizer.config.alignment
    assert vfmtok.to_released(tokenizer).keys() == stage3.keys()
    incomplete = {name: tensor for name, tensor in stage3.items() if name != "mapping.mlp.fc0.bias"}
    with pytest.raises(vfmtok.WeightsError, match=r"mapping\.mlp\.fc0\.bias"):
        vfmtok.load_released(tokenizer, incomplete)


def test_names_and_sizes_of_the_full_model():
    with torch.device("meta"):
        tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(ROOT / "configs/vfm_vae/stage1.yaml"))
        tokenizer.fit_released(golden_rule.shapes(f"{FOLDER}/vfmvae_keys.json"))
    published = {name: list(tensor.shape) for name, tensor in vfmtok.to_released(tokenizer).items()}
    assert published == full_keys()
    count = {n: sum(p.numel() for p in m.parameters()) / 1e6 for n, m in tokenizer.named_children()}
    assert count["fusion"] == pytest.approx(11.6, abs=0.05) and count["expand"] == pytest.approx(1.9, abs=0.05)
    assert count["style"] == pytest.approx(0.5, abs=0.05) and count["decoder"] == pytest.approx(125.7, abs=0.05)


def full_keys() -> dict[str, list[int]]:
    keys = golden_rule.shapes(f"{FOLDER}/vfmvae_keys.json")
    return {TOWER + n: s for n, s in golden_rule.shapes(f"{FOLDER}/siglip2_vitl16_512_keys.json").items()} | keys


@pytest.mark.slow
@torch.no_grad()
def test_the_full_model():
    golden = load("full_eval")
    tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(ROOT / "configs/vfm_vae/stage1.yaml")).eval()
    vfmtok.load_released(tokenizer, rule_weights(full_keys(), "vfmvae."))
    found = tokenizer.encode(golden_rule.image_for("vfmvae_full", 1, 256))
    for index, level in enumerate(found.features):
        close(level[:, ::64, ::64], golden[f"level{index}"])
        assert level.std(correction=0).item() == pytest.approx(float(golden[f"level{index}_std"]), rel=1e-3)
    maps = [level.transpose(1, 2).unflatten(2, (32, 32)) for level in found.features]
    for index, fused in enumerate(tokenizer.fusion.narrowed(maps)):
        close(fused.flatten(2).transpose(1, 2)[:, ::16, ::16], golden[f"fused{index}"])
    mean, logvar = found.posterior.mean, found.posterior.logvar
    close(torch.cat([mean, logvar], dim=1), golden["moments"])
    expanded = tokenizer.expand(mean)
    close(expanded[:, ::32, ::3, ::3], golden["expanded"])
    close(tokenizer.style(expanded), golden["style"])
    scales = tokenizer.decode_scales(mean)
    for side, step in ((8, 1), (16, 1), (32, 1), (64, 5), (128, 9)):
        close(scales[side][:, :, ::step], golden[f"image{side}"])
    close(scales[256][:, :, ::37], golden["image256_rows"])
    close(F.avg_pool2d(scales[256], 8), golden["image256_pooled"])
    sampled = tokenizer.decode(found.posterior.sample(noise("full", mean.shape)))
    close(sampled[:, :, ::97], golden["sampled256_rows"])
    close(F.avg_pool2d(sampled, 8), golden["sampled256_pooled"])
    half = tokenizer.decode(resize_by(mean, 0.5, antialias=False))
    close(F.avg_pool2d(half, 4), golden["half128_pooled"])
