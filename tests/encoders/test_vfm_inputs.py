"""The encoder adapter as VFM-VAE reads it: the embedding as a level, inputs by a factor, SigLIP by other names."""

import golden_rule
import pytest
import storage_free
import timm
import torch
import torch.nn.functional as F

import vfmtok
from vfmtok.encoders.vfm import Encoder, EncoderConfig


def by_hand(model, pixels, table):
    """timm's own layers, one after the other: the embedding with these positions, and every block's output."""
    x = model.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
    prefix = [token.expand(len(x), -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
    x = torch.cat([*prefix, x + table], 1) if model.no_embed_class else torch.cat([*prefix, x], 1) + table
    levels = [x]
    for block in model.blocks:
        levels.append(block(levels[-1]))
    return levels


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_reg4_dinov2.lvd142m"])
@torch.no_grad()
def test_the_embedding_and_inputs_by_a_factor(name):
    """Positions are resampled to the grid of every batch, not antialiased; prefix tokens are dropped."""
    probe = timm.create_model(name, num_classes=0)
    patch, stored = probe.patch_embed.patch_size[0], probe.patch_embed.grid_size[0]
    config = EncoderConfig(
        name=name,
        image_size=4 * patch,
        input_scale=2.0,
        levels=(0, 1, 2),
        resize="bilinear",
        position_resampling="plain",
        final_norm=False,
        weights="random",
    )
    encoder = Encoder(config)
    assert encoder.grids == ((4, 4),) * 3 and encoder.backbone.pos_embed.shape == probe.pos_embed.shape
    model, prefix = encoder.backbone, 0 if probe.no_embed_class else probe.num_prefix_tokens
    for side in (2, 3):
        images = golden_rule.image_for("factor", 2, side * patch)
        found = encoder(images)
        pixels = F.interpolate(images / 2 + 0.5, scale_factor=2.0, mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.config.mean, encoder.config.std))
        table = model.pos_embed[:, prefix:].transpose(1, 2).unflatten(2, (stored, stored))
        table = F.interpolate(table, (2 * side, 2 * side), mode="bicubic", align_corners=False)
        table = torch.cat([model.pos_embed[:, :prefix], table.flatten(2).transpose(1, 2)], 1)
        expected = by_hand(model, (pixels - mean) / std, table)
        for level, tokens in zip(found, expected, strict=False):
            assert level.shape == (2, 4 * side**2, tokens.shape[2])
            assert torch.allclose(level, tokens[:, model.num_prefix_tokens :], atol=1e-5)


def test_the_last_level_with_and_without_the_final_norm():
    raw, normed = (
        Encoder(EncoderConfig(name="test_vit", image_size=64, levels=(0, 6), final_norm=final, weights="random"))
        for final in (False, True)
    )
    images = golden_rule.image_for("final", 1, 64)
    assert torch.allclose(normed.backbone.norm(raw(images)[1]), normed(images)[1], atol=1e-6)
    assert torch.equal(normed(images)[0], raw(images)[0])


def test_a_pyramid_has_no_level_0():
    with pytest.raises(vfmtok.ConfigError, match="no level 0"):
        Encoder(EncoderConfig(name="tf_efficientnet_lite0", image_size=64, levels=(0, 2), weights="random"))


def test_siglip_by_the_names_of_transformers():
    """The tower of a file of transformers, its pooling head in another layout and a text tower beside it."""
    name = "vit_base_patch16_siglip_224"
    model = storage_free.create_model(name, num_classes=0)
    ours = {key: golden_rule.tensor_for(key, tensor.shape) for key, tensor in model.state_dict().items()}
    theirs = {"vision_model.embeddings.position_embedding.weight": ours["pos_embed"][0], "text_model.a": torch.ones(1)}
    for key, tensor in ours.items():
        if ".attn.qkv." in key:
            layer, leaf = key.split(".")[1], key.rpartition(".")[2]
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                theirs[f"vision_model.encoder.layers.{layer}.self_attn.{part}_proj.{leaf}"] = third
        elif key.startswith(("attn_pool.q.", "attn_pool.kv.")):
            continue
        elif key != "pos_embed":
            for old, new in (
                ("patch_embed.proj", "embeddings.patch_embedding"), ("blocks", "encoder.layers"),
                ("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.proj", "self_attn.out_proj"),
                ("attn_pool.latent", "head.probe"), ("attn_pool.proj", "head.attention.out_proj"),
                ("attn_pool.norm", "head.layernorm"), ("attn_pool", "head"),
            ):  # fmt: skip
                key = key.replace(old, new)
            theirs[f"vision_model.{'post_layernorm' + key[4:] if key.startswith('norm.') else key}"] = tensor
    for leaf in ("weight", "bias"):
        stacked = torch.cat([ours[f"attn_pool.{part}.{leaf}"] for part in ("q", "kv")])
        theirs[f"vision_model.head.attention.in_proj_{leaf}"] = stacked
    encoder = Encoder(EncoderConfig(name=name, image_size=224, levels=(12,)))
    encoder.load_official(theirs)
    for key, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, ours[key]), key
    del theirs["vision_model.encoder.layers.3.self_attn.k_proj.bias"]
    with pytest.raises(vfmtok.WeightsError, match=r"blocks\.3\.attn\.qkv\.bias"):
        encoder.load_official(theirs)
