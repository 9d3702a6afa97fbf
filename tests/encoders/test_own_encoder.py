"""An encoder that is not timm's takes its place by a row in a table."""

import dataclasses

import pytest
import torch
from torch import nn

import vfmtok
from vfmtok import encoders
from vfmtok.encoders.contract import FeatureEncoder
from vfmtok.errors import ConfigError


class Patches(nn.Module):
    """One level: the mean colours of 8x8 patches, a fixed function."""

    def __init__(self, config):
        super().__init__()
        self.config = dataclasses.replace(config, levels=(1,), mean=(0.5,) * 3, std=(0.5,) * 3)
        side = config.image_size // 8
        self.widths, self.grids, self.available_levels = (3,), ((side, side),), 1

    def forward(self, images):
        images = nn.functional.interpolate(images, (self.config.image_size,) * 2, mode="bilinear")
        return [nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)]  # (B,N,3)

    with_gradient = forward


@pytest.fixture
def patches(monkeypatch):
    monkeypatch.setitem(encoders.OWN_ENCODERS, "patches", Patches)


def test_it_serves_a_tokenizer(patches, tiny_config):
    config = tiny_config("encoder.name=patches", "encoder.levels=null")
    tokenizer = vfmtok.build_tokenizer(config)
    assert isinstance(tokenizer.encoder, FeatureEncoder)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    out = tokenizer(images)
    assert torch.equal(out.feature_target, tokenizer.encoder(images)[0])
    assert tokenizer.config.encoder.levels == (1,)
    out.reconstruction.mean().backward()
    tokenizer.eval()
    with torch.no_grad():
        assert torch.equal(tokenizer.decode(tokenizer.encode(images).ids), tokenizer(images).reconstruction)


class Mixed(Patches):
    """The same with weights."""

    def __init__(self, config):
        super().__init__(config)
        self.mix = nn.Linear(3, 3)


def test_a_frozen_random_one_is_the_same_in_every_load(monkeypatch, tiny_config):
    """Checkpoints leave it out: other weights would make the ids of before meaningless."""
    monkeypatch.setitem(encoders.OWN_ENCODERS, "mixed", Mixed)
    config = tiny_config("encoder.name=mixed", "encoder.levels=null", "encoder.weights=random")
    first, second = (vfmtok.build_tokenizer(config).encoder.mix.weight for _ in range(2))
    assert torch.equal(first, second)
    trained = tiny_config("encoder.name=mixed", "encoder.levels=null", "encoder.frozen=false")
    first, second = (vfmtok.build_tokenizer(trained).encoder.mix.weight for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("weights", ["package", "auto", "/nowhere.pt"])
def test_weights_it_does_not_have_are_refused(patches, tiny_config, weights):
    with pytest.raises(ConfigError, match=r"encoder.weights.*'patches'.*random"):
        vfmtok.build_tokenizer(tiny_config("encoder.name=patches", "encoder.levels=null", f"encoder.weights={weights}"))
