"""VFMAE: its arithmetic written out plainly, and what holds for any weights."""

import golden_rule
import pytest
import tiny_vfmae
import torch
import torch.nn.functional as F

import vfmtok
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.layers.region_sampler import RegionSampler, SamplerConfig


def by_rule(tokenizer):
    weights = {name: golden_rule.tensor_for(name, t.shape) for name, t in vfmtok.to_released(tokenizer).items()}
    return vfmtok.load_released(tokenizer, weights)


@pytest.fixture(scope="module")
def vfmae():
    return by_rule(tiny_vfmae.tokenizer())


@pytest.fixture(scope="module")
def images():
    return golden_rule.image_for("vfmae", 2, 32)


# ---- the same, written out under the published names, in float64 ---------------------------


def linear(w, name, x):
    return x @ w[f"{name}.weight"].t() + w[f"{name}.bias"]


def layer_norm(w, name, x):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def transformer_layer(w, name, x, heads=4):
    y = layer_norm(w, f"{name}.norm1", x)
    q, k, v = (linear(w, f"{name}.attn1.{part}_proj", y).unflatten(-1, (heads, -1)) for part in "qkv")  # (B,N,H,d)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    read = torch.einsum("bhij,bjhd->bihd", scores.exp() / scores.exp().sum(-1, keepdim=True), v).flatten(2)
    x = x + linear(w, f"{name}.attn1.out_proj", read)
    gate, value = linear(w, f"{name}.ffnet.w12", layer_norm(w, f"{name}.norm2", x)).chunk(2, -1)
    return x + linear(w, f"{name}.ffnet.w3", gate * torch.sigmoid(gate) * value)


def branch(w, latents, mask, norm, layers, depth):
    """All tokens of [memory, class token, patches] behind the layers of a branch."""
    t = "decode_transformer"
    memory = linear(w, "post_slots_quant", latents.flatten(2).transpose(1, 2)) + w[f"{t}.slot_position_embedding"]
    places = w[f"{t}.position_embedding"]
    tokens = torch.cat([w[f"{t}.cls_token"] + places[:, :1], w[f"{t}.{mask}"] + places[:, 1:]], 1)
    tokens = layer_norm(w, f"{t}.{norm}", tokens).expand(len(latents), -1, -1)
    x = torch.cat([layer_norm(w, f"{t}.norm_post1", memory), tokens], 1)
    for number in range(depth):
        x = transformer_layer(w, f"{t}.{layers}.layers.{number}", x)
    return x


def test_the_vit_decoder_is_the_published_arithmetic():
    """With as many cells in the image as in the features, where one table of positions fits both."""
    vfmae = by_rule(tiny_vfmae.tokenizer(pixel_decoder={"channels": 32, "multipliers": [1, 1, 1, 1], "res_blocks": 1}))
    vfmae.train()
    latents = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    w = {name: tensor.double() for name, tensor in vfmtok.to_released(vfmae).items()}
    with torch.no_grad():
        image_map, features = vfmae.decoder(latents, with_features=True)
    image = branch(w, latents.double(), "mask_embedding", "norm_post1", "transformer", 2)[:, -16:]
    assert torch.allclose(image_map.double(), image.transpose(1, 2).unflatten(2, (4, 4)), atol=1e-5)
    seen = branch(w, latents.double(), "dino_mask", "norm_post2", "dino_transformer", 1)[:, -17:]
    assert torch.allclose(features.double(), linear(w, "decode_transformer.proj", seen), atol=1e-5)


def test_the_bottleneck_is_the_published_arithmetic(vfmae, images):
    """Statistics of a group of 2 channels are over all tokens of an image; cell (i,j) is query 4 i + j."""
    with torch.no_grad():
        found = vfmae.encode(images)
        groups = found.region_tokens.double().reshape(2, 16, 32, 2)
        mean = groups.mean((1, 3), keepdim=True)
        normed = (groups - mean) / ((groups - mean).square().mean((1, 3), keepdim=True) + 1e-6).sqrt()
        w = {name: tensor.double() for name, tensor in vfmtok.to_released(vfmae).items()}
        x = normed.flatten(2) * w["slots_quant.norm_out.weight"] + w["slots_quant.norm_out.bias"]
        z = (x * torch.sigmoid(x)) @ w["slots_quant.conv_out.weight"][:, :, 0, 0].t() + w["slots_quant.conv_out.bias"]
    assert torch.allclose(found.latents.flatten(2).transpose(1, 2).double(), z, atol=1e-5)


def test_the_class_token_joins_every_cell(vfmae, images):
    without = by_rule(tiny_vfmae.tokenizer(class_token=False))
    with torch.no_grad():
        found, plain = vfmae.encode(images), without.encode(images)
        levels = vfmae.encoder.with_class_token(images)
        assert all(torch.equal(torch.cat(parts, 1), level)
                   for *parts, level in zip(found.class_tokens, found.features, levels, strict=True))  # fmt: skip
        assert plain.class_tokens == [] and torch.equal(plain.features[0], found.features[0])
        joined = [level[:, 1:] + level[:, :1] for level in levels]
        assert torch.equal(vfmae.sampler(joined), found.region_tokens)
        assert torch.equal(without.sampler(plain.features), plain.region_tokens)
    assert not torch.allclose(found.region_tokens, plain.region_tokens, atol=0.1)


# ---- properties ----------------------------------------------------------------------------


def test_queries_see_later_ones_too():
    sampler = RegionSampler(SamplerConfig(num_tokens=9, depth=1, heads=4), 16, [8], [(4, 4)], causal=False)
    features = [torch.randn(1, 16, 8)]
    before = sampler(features)
    with torch.no_grad():
        sampler.queries[0, 5] += torch.randn(16)
    assert (sampler(features) != before).any(-1).all()


def test_every_latent_reaches_every_cell(vfmae):
    latents = torch.zeros(1, 6, 4, 4, requires_grad=True)
    image_map, _ = vfmae.decoder(latents)
    for cell in (0, -1):
        (gradient,) = torch.autograd.grad(image_map.flatten(2)[0, :, cell].sum(), latents, retain_graph=True)
        assert (gradient != 0).any(1).all()


def test_decoding_its_latents_is_the_reconstruction(vfmae, images):
    with torch.no_grad():
        latents, out = vfmae.encode(images).latents, vfmae(images)
        assert latents.shape == (2, *vfmae.code.shape) and latents.dtype == torch.float32
        assert torch.equal(vfmae.decode(latents), out.reconstruction)
        assert torch.equal(vfmae.decode_latents(latents), out.reconstruction)
        assert out.losses == {} and out.feature_reconstruction is None
        pixels = vfmae.decode_to_uint8(latents, 32)
        expected = (out.reconstruction * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        assert torch.equal(pixels, expected.permute(0, 2, 3, 1))


def test_features_are_reconstructed_in_training_with_the_class_token_first(vfmae, images):
    out = vfmae.train()(images)
    vfmae.eval()
    with torch.no_grad():
        levels = vfmae.encoder.with_class_token(images)
    assert torch.equal(out.feature_target, levels[-1])
    assert out.feature_reconstruction.shape == levels[-1].shape == (2, 17, 64)
    out.feature_reconstruction.sum().backward()
    reached = {name for name, p in vfmae.named_parameters() if p.grad is not None}
    vfmae.zero_grad()
    own = {name for name in reached if name.startswith("decoder.") and "position" not in name}
    assert any("feature_layers" in name for name in own) and not any(".layers" in name for name in own)
    assert not any(name.startswith("pixel_decoder") for name in reached)


def test_an_encoder_without_a_class_token_has_none_to_join(images):
    tokenizer = tiny_vfmae.tokenizer(encoder=tiny_vfmae.NO_CLASS_TOKEN).train()
    out = tokenizer(images)
    assert not tokenizer.config.class_token and tiny_vfmae.tokenizer().config.class_token
    assert torch.equal(out.feature_target, tokenizer.encoder(images)[-1])
    assert out.feature_reconstruction.shape == out.feature_target.shape == (2, 16, tokenizer.encoder.widths[-1])
    with pytest.raises(ConfigError, match="test_efficientnet"):
        tiny_vfmae.tokenizer(encoder=tiny_vfmae.NO_CLASS_TOKEN, class_token=True)


def test_latents_are_float32_under_autocast(vfmae, images):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = vfmae.encode(images)
        exact = vfmae.bottleneck(found.region_tokens.float())
    assert found.latents.dtype == torch.float32 and torch.equal(found.latents, exact)


def test_the_frozen_encoder_is_left_alone(vfmae, images):
    vfmae.train()(images).reconstruction.mean().backward()
    assert vfmae.frozen_parts == ("encoder",)
    assert all(p.grad is None for p in vfmae.encoder.parameters()) and not vfmae.encoder.training
    assert vfmae.last_layer.grad is not None
    vfmae.eval().zero_grad()


def test_published_names_round_trip(vfmae):
    written = vfmtok.to_released(vfmae)
    other = vfmtok.load_released(tiny_vfmae.tokenizer(), {name: tensor + 1 for name, tensor in written.items()})
    moved = vfmtok.to_released(other)
    assert moved.keys() == written.keys() and len(written) == len(vfmae.state_dict()) - len(vfmae.encoder.state_dict())
    assert all(torch.equal(moved[name], written[name] + 1) for name in written)
    with pytest.raises(WeightsError, match=r"1 missing: slots_quant\.conv_out\.bias"):
        vfmtok.load_released(other, {name: t for name, t in written.items() if name != "slots_quant.conv_out.bias"})


@pytest.mark.parametrize("latents", [torch.zeros(1, 6, 4, 5), torch.zeros(1, 16, 6), torch.zeros(1, 6, 4, 4).long()])
def test_latents_of_another_kind_are_named(vfmae, latents):
    with pytest.raises(ValueError, match=r"\(B,6,4,4\)") as refused:
        vfmae.decode(latents)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dim=48", "dim must be a multiple of 32"),
        ("dim=0", "dim must be positive"),
        ("latent_channels=0", "latent_channels must be positive"),
        ("image_size=30", "image_size must be a multiple"),
        ("decoder.heads=5", "decoder.heads must divide dim"),
        ("decoder.feature_depth=0", "decoder.feature_depth must be positive"),
        ("sampler.num_tokens=15", "must be a square number"),
        ("quantizer.codebook_size=8", "unknown key 'quantizer'"),
    ],
)
def test_impossible_configurations_are_one_line(root, setting, message):
    with pytest.raises(ConfigError, match=message) as refused:
        vfmtok.load_config(root / "configs/vfmae/vfmae.yaml", [setting])
    assert "\n" not in str(refused.value)


def test_the_small_recipe_learns_the_sample_set_s_shape(root):
    """What configs/vfmae/emoji64.yaml makes of an image: 64 latents of 16 channels, as many tokens as VFMTok's."""
    config = vfmtok.load_config(root / "configs/vfmae/emoji64.yaml", ["encoder.weights=random"])
    tokenizer = vfmtok.build_tokenizer(config)
    out = tokenizer.train()(golden_rule.image_for("emoji", 1, 64))
    assert tokenizer.code == vfmtok.Latents((16, 8, 8)) and out.latents.shape == (1, 16, 8, 8)
    assert F.cosine_similarity(out.feature_reconstruction, out.feature_target, dim=-1).shape == (1, 64)
