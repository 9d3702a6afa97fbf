"""A frozen encoder whose features are the target beside an encoder that is trained."""

import pytest
import torch

import vfmtok
from vfmtok.encoders.vfm import Encoder
from vfmtok.losses.feature import feature_loss
from vfmtok.weights.hashing import tokenizer_hash

OTHER = "{name: test_vit, image_size: 64, levels: [3], weights: random}"
SWITCH = ["encoder.frozen=false", f"feature_encoder={OTHER}"]


def test_the_target_is_the_frozen_encoders_and_does_not_move(tiny_tokenizer):
    tokenizer = tiny_tokenizer(*SWITCH, "decoder.attention_dropout=0.0").train()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    wanted = Encoder(tokenizer.config.feature_encoder)(images)[-1]  # frozen and random: the same weights every time
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.1)
    for _ in range(2):
        out = tokenizer(images)
        torch.testing.assert_close(out.feature_target, wanted)
        assert not out.feature_target.requires_grad
        assert out.feature_reconstruction.shape == wanted.shape
        feature_loss(out.feature_reconstruction, out.feature_target).backward()
        assert any(p.grad is not None and p.grad.any() for p in tokenizer.encoder.parameters())  # it learns from it
        optimizer.step()
    assert not torch.equal(out.features[-1], wanted)
    assert tokenizer.eval()(images).feature_target is None  # nothing is compared


def test_it_is_no_part_of_what_is_saved_or_trained(tiny_tokenizer):
    plain, switched = tiny_tokenizer("encoder.frozen=false"), tiny_tokenizer(*SWITCH)
    assert plain.state_dict().keys() == switched.state_dict().keys()
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in switched.named_parameters()}
    switched.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(plain.eval().encode(images).ids, switched.eval().encode(images).ids)
    assert tokenizer_hash(plain) == tokenizer_hash(switched)  # one computes what the other does


def test_its_grid_and_width_are_those_of_the_target(tiny_tokenizer):
    other = "{name: test_vit2, image_size: 128, levels: [6], weights: random}"
    tokenizer = tiny_tokenizer("encoder.frozen=false", f"feature_encoder={other}").train()
    out = tokenizer(torch.rand(1, 3, 32, 32) * 2 - 1)
    assert out.feature_reconstruction.shape == out.feature_target.shape
    assert out.feature_target.shape[1:] != out.features[-1].shape[1:]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"feature_encoder={OTHER}", "feature_encoder.frozen=false"], "feature_encoder.frozen must be true"),
        ([*SWITCH, "decoder.reconstruct_features=false"], "needs decoder.reconstruct_features true"),
        (["feature_encoder.nmae=x"], "unknown key 'feature_encoder.nmae'"),
    ],
)
def test_what_makes_no_sense(tiny_config, overrides, message):
    with pytest.raises(vfmtok.ConfigError, match=message):
        tiny_config(*overrides)
