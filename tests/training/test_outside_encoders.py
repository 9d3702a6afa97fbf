"""Encoders that are not the tokenizer's own: of the perceptual loss, of the feature target."""

import pytest
import torch

import vfmtok
from vfmtok.encoders.vfm import Encoder
from vfmtok.losses.perceptual import EncoderPerceptual
from vfmtok.tokenizers import build_tokenizer
from vfmtok.training.objective import TokenizerObjective, build_perceptual

YARDSTICK = "loss.perceptual_encoder={name: test_vit, image_size: 64, levels: [2, 5], weights: random}"


def test_the_perceptual_loss_has_an_encoder_of_its_own(tiny_recipe):
    recipe = tiny_recipe(YARDSTICK, "tokenizer.encoder.frozen=false", "tokenizer.encoder.levels=[6]")
    tokenizer = build_tokenizer(recipe.tokenizer).train()
    perceptual = build_perceptual(recipe.loss, tokenizer)
    assert not list(perceptual.parameters()) and not perceptual.state_dict()
    objective = TokenizerObjective(recipe.loss, recipe.adversarial, tokenizer, perceptual, None)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    out = tokenizer(images)
    wanted = EncoderPerceptual(Encoder(recipe.loss.perceptual_encoder))(out.reconstruction, images)
    torch.testing.assert_close(objective(images, out)["perceptual"], wanted)
    wanted.backward()
    assert tokenizer.pixel_decoder.conv_out.weight.grad.any()
    assert perceptual.double()._encoder[0].mean.dtype == torch.float64  # it moves with the loss


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["tokenizer.encoder.frozen=false"],
            r"needs encoder.frozen \(a network that learns is no fixed measure\), or a loss.percep",
        ),
        ([YARDSTICK, "loss.perceptual=none"], "loss.perceptual_encoder needs loss.perceptual encoder, got none"),
        ([YARDSTICK, "loss.perceptual_encoder.frozen=false"], "loss.perceptual_encoder.frozen must be true"),
        ([YARDSTICK, "loss.perceptual_encoder.weights=none"], "set loss.perceptual_encoder.weights to auto"),
        (
            ["tokenizer.feature_encoder={name: test_vit, image_size: 64, levels: [6]}"],
            "set tokenizer.feature_encoder.weights to auto",
        ),
    ],
)
def test_what_makes_no_sense(tiny_recipe, overrides, message):
    with pytest.raises(vfmtok.ConfigError, match=message):
        tiny_recipe(*overrides)


@pytest.mark.slow
def test_a_run_with_a_frozen_target_continues_to_the_same_weights(tiny_recipe, train):
    """The target is in no checkpoint; the encoder that learns is."""
    switch = ["tokenizer.encoder.frozen=false", "optimizer.steps=4", "run.save_every=2", YARDSTICK,
              "tokenizer.feature_encoder={name: test_vit, image_size: 64, levels: [6], weights: random}"]  # fmt: skip
    whole = train(tiny_recipe(*switch, name="whole"))
    train(tiny_recipe(*switch, "optimizer.steps=2", name="parts"))
    parts = train(tiny_recipe(*switch, name="parts"))
    one, other = (vfmtok.from_pretrained(str(run), "tokenizer") for run in (whole, parts))
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert any(name.startswith("encoder.") for name in one.state_dict())
