"""VFM-VAE as a tokenizer: its published file, its contract, its configuration."""

import io

import golden_rule
import pytest
import torch
from tokenizers.vfm_vae.tiny import DISCRETE, ROOT, TINY, rule_weights, tiny, variant

import vfmtok
from vfmtok.generators.counter_random import Draws
from vfmtok.pretrained.published import PUBLISHED, VFMVAE


@pytest.mark.parametrize("layout", ["G_ema", "bare"])
def test_the_published_file(hub, layout):
    """Found by its repository, the average taken, the frozen encoder with it: nothing is random, nothing warns."""
    weights = rule_weights(variant("tiny_keys"), "vfmvae_tiny.")
    last = {name: tensor + 1 for name, tensor in weights.items()}
    content = {"G": last, "D": {"a": torch.ones(1)}, "G_ema": weights, "training_set_kwargs": {"path": "a"}}
    file = io.BytesIO()
    torch.save(content if layout == "G_ema" else weights, file)
    hub.repositories[VFMVAE] = {PUBLISHED[VFMVAE].parts["tokenizer"].file: file.getvalue()}
    tokenizer = vfmtok.from_pretrained(VFMVAE, "tokenizer", overrides=TINY).eval()
    again = vfmtok.to_released(tokenizer)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    with torch.no_grad():
        images = golden_rule.image_for("vfmvae_tiny", 1, 64)
        assert torch.equal(tokenizer.encode(images).latents, tiny().encode(images).latents)
    if layout == "G_ema":
        other = vfmtok.from_pretrained(VFMVAE, "tokenizer", overrides=TINY, prefer="model")
        assert torch.equal(vfmtok.to_released(other)["mapping.x_avg"], last["mapping.x_avg"])


@torch.no_grad()
def test_latents_are_the_mean_unless_a_sample_is_asked_for():
    """A sample is a function of its own random numbers, whatever batch it is in."""
    tokenizer, images = tiny(), golden_rule.image_for("vfmvae_tiny", 2, 64)
    assert tokenizer.encode_draws and tokenizer.code == vfmtok.Latents((8, 16, 16))
    found = tokenizer.encode(images)
    assert torch.equal(found.latents, tokenizer.encode(images).latents)
    samples = torch.arange(40, 42)
    both = tokenizer.encode(images, Draws(3, samples)).latents
    alone = tokenizer.encode(images[1:], Draws(3, samples[1:])).latents
    assert torch.allclose(both[1:], alone, atol=1e-5)
    noise = (both - found.posterior.mean) / found.posterior.std
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    assert not torch.equal(both, tokenizer.encode(images, Draws(4, samples)).latents)


@torch.no_grad()
def test_other_sizes():
    tokenizer = tiny()
    for side in (32, 96):
        latents = tokenizer.encode(golden_rule.image_for("size", 1, side)).latents
        assert latents.shape == (1, 8, side // 4, side // 4)
        assert tokenizer.decode(latents).shape == (1, 3, side, side)
    with pytest.raises(ValueError, match="multiple of 16"):
        tokenizer.encode(golden_rule.image_for("size", 1, 40))


@torch.no_grad()
def test_discrete_codes():
    tokenizer = tiny(*DISCRETE, keys="tiny_discrete_keys")
    assert not tokenizer.encode_draws
    ids = tokenizer.encode(golden_rule.image_for("vfmvae_tiny", 1, 64)).ids
    with pytest.raises(ValueError, match=r"must be in \[0,64\)"):
        tokenizer.decode(ids + 64)
    with pytest.raises(ValueError, match="256 tokens"):
        tokenizer.decode(ids[:, :-1])
    with pytest.raises(ValueError, match="latents of 8 x 16 x 16"):
        tiny().decode(ids)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("latent_size=12",), "latent_size"),
        (("image_size=72",), "image_size"),
        (("encoder.image_size=64",), "encoder.image_size must be image_size times"),
        (("decoder.blurs=[3, 3, 3, 4]",), "decoder.blurs"),
        (("decoder.heads=3",), "decoder.heads"),
        (("decoder.layers=[1, 1]",), "decoder.layers"),
        (("level_width=24",), "must divide 64"),
        (("encoder.levels=[0, 2, 9]",), "encoder.levels"),
    ],
)
def test_settings_that_cannot_be(overrides, message):
    with pytest.raises(vfmtok.ConfigError, match=message) as raised:
        vfmtok.build_tokenizer(vfmtok.load_config(ROOT / "configs/vfm_vae/stage1.yaml", [*TINY, *overrides]))
    assert "\n" not in str(raised.value)


def test_saved_and_opened(tmp_path):
    """The encoder is not saved: the folder asks for it where it was published."""
    tokenizer = tiny()
    vfmtok.save_pretrained(tokenizer, tmp_path / "model")
    opened = vfmtok.from_pretrained(tmp_path / "model", overrides=["encoder.weights=random"])
    own = {name: tensor for name, tensor in tokenizer.state_dict().items() if not name.startswith("encoder.")}
    assert all(torch.equal(opened.state_dict()[name], tensor) for name, tensor in own.items())
    assert "weights: auto" in (tmp_path / "model/config.yaml").read_text()
