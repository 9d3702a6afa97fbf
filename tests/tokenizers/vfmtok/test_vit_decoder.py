"""The ViT decoder against the same model run slowly: one branch at a time, registers and all, explicit masks."""

import math

import pytest
import torch

from vfmtok.layers.positions import resample_by_scale
from vfmtok.tokenizers.vfmtok.config import DecoderConfig
from vfmtok.tokenizers.vfmtok.vit_decoder import ViTDecoder


def make_decoder(**config) -> ViTDecoder:
    torch.manual_seed(0)
    options = {"depth": 3, "heads": 4, "mlp_dim": 48, "registers": 3} | config
    decoder = ViTDecoder(
        DecoderConfig(**options), dim=32, code_dim=6, num_tokens=9, image_grid=4, feature_grid=5, feature_dim=7
    )
    for parameter in decoder.parameters():  # norms and biases start as constants, which hides mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder.eval()


def slow_branch(decoder, codes, mask_token, grid, norm, layers):
    """[memory, CLS, (registers,) patches, (registers)] through full causal attention -> the patches."""
    config = decoder.config
    memory = decoder.memory_norm(decoder.from_codes(codes) + decoder.memory_positions)
    cls = decoder.cls_token + decoder.patch_positions[:, :1]
    patches = mask_token + resample_by_scale(decoder.patch_positions[:, 1:], grid)
    registers = [] if decoder.registers is None else [decoder.registers]
    parts = [cls, *registers, patches] if config.register_position == "front" else [cls, patches, *registers]
    offset = memory.shape[1] + 1 + (config.registers if config.register_position == "front" else 0)
    tokens = norm(torch.cat(parts, dim=1)).expand(len(codes), -1, -1)
    x = torch.cat([memory, tokens], dim=1)
    length = x.shape[1]
    future = torch.triu(torch.full((length, length), -math.inf), diagonal=1)
    for layer in layers:
        h = layer.attention_norm(x)
        heads = []
        for q, k, v in zip(
            *(
                proj(h).chunk(4, dim=-1)
                for proj in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj)
            ),
            strict=True,
        ):
            scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + future
            heads.append(scores.softmax(-1) @ v)
        x = x + layer.attention.out_proj(torch.cat(heads, dim=-1))
        gate, value = layer.mlp.w12(layer.mlp_norm(x)).chunk(2, dim=-1)
        x = x + layer.mlp.w3(gate * torch.sigmoid(gate) * value)
    return x[:, offset : offset + grid * grid]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"register_position": "front"},
        {"registers": 0},
        {"shared": False},
        {"mask_tokens": "shared"},
        {"position_grid": 6},
        {"depth": 1},
    ],
    ids=str,
)
def test_against_slow_reference(config):
    decoder = make_decoder(**config)
    codes = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(1))
    image, features = decoder(codes, with_features=True)
    expected = slow_branch(decoder, codes, decoder.image_mask_token, 4, decoder.memory_norm, decoder.layers)
    assert torch.allclose(image.flatten(2).transpose(1, 2), expected, atol=1e-5)

    mask = decoder.image_mask_token if decoder.config.mask_tokens == "shared" else decoder.feature_mask_token
    layers = decoder.layers if decoder.config.shared else decoder.feature_layers
    expected = decoder.to_features(slow_branch(decoder, codes, mask, 5, decoder.feature_norm, layers))
    assert torch.allclose(features, expected, atol=1e-5)

    alone, nothing = decoder(codes)
    assert nothing is None
    assert torch.allclose(alone, image, atol=1e-6), "the image branch does not see the feature branch"


def test_registers_at_the_end_get_a_zero_gradient():
    decoder = make_decoder()
    image, features = decoder(torch.randn(1, 9, 6), with_features=True)
    (image.sum() + features.sum()).backward()
    assert torch.equal(decoder.registers.grad, torch.zeros_like(decoder.registers))


def test_registers_in_front_are_trained():
    decoder = make_decoder(register_position="front")
    decoder(torch.randn(1, 9, 6))[0].square().sum().backward()
    assert decoder.registers.grad.abs().max() > 0


def test_dropout_acts_in_training_only():
    decoder = make_decoder(attention_dropout=0.5)
    codes = torch.randn(1, 9, 6)
    assert torch.equal(decoder(codes)[0], decoder(codes)[0])
    decoder.train()
    assert not torch.equal(decoder(codes)[0], decoder(codes)[0])


def test_initialisation():
    torch.manual_seed(0)
    decoder = ViTDecoder(DecoderConfig(depth=1), 512, 12, num_tokens=256, image_grid=21, feature_grid=24, feature_dim=8)
    w12 = decoder.layers[0].mlp.w12
    assert w12.weight.shape == (2 * 1368, 512)
    assert w12.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (512 + 2736)), rel=1e-3)
    assert torch.equal(w12.bias, torch.zeros_like(w12.bias))
    assert torch.equal(decoder.registers, torch.zeros(1, 4, 512))
    assert decoder.patch_positions.norm(dim=-1).mean().item() == pytest.approx(1, abs=0.01)
