"""Tokenizers whose foundation model is trained with the rest: no form of them may lose its weights."""

import pytest
import tiny_hita
import tiny_vfmae
import torch
from saved_models import assert_same
from tokenizers.vfm_vae.tiny import tiny as tiny_vfm_vae

import vfmtok
from vfmtok.config import config_from_dict
from vfmtok.encoders.config import EncoderConfig
from vfmtok.errors import WeightsError
from vfmtok.tokenizers.hita.config import HitaConfig
from vfmtok.tokenizers.vqgan.config import VQGANConfig


def trained(config) -> torch.nn.Module:
    """With an encoder that is no longer what it began with."""
    tokenizer = vfmtok.build_tokenizer(config).eval()
    with torch.no_grad():
        for parameter in tokenizer.encoder.parameters():
            parameter.add_(0.1)
    return tokenizer


@pytest.fixture(params=["vfmtok", "vqgan", "hita", "vfmae"])
def tokenizer(request, encoder_file, tiny_config):
    encoder = {"weights": str(encoder_file), "frozen": False}
    if request.param == "vfmtok":
        return trained(tiny_config(f"encoder.weights={encoder_file}", "encoder.frozen=false"))
    if request.param == "vqgan":
        small = {"channels": 32, "multipliers": (1, 1, 1, 1, 1), "res_blocks": 1}
        tree = {"image_size": 64, "z_channels": 32, "pixel_decoder": small}
        tree["encoder"] = {"kind": "vfm", "name": "test_vit", "image_size": 64, "levels": [6], **encoder}
        return trained(config_from_dict(tree, VQGANConfig))
    config, kind = {"hita": (tiny_hita.CONFIG, HitaConfig), "vfmae": (tiny_vfmae.CONFIG, tiny_vfmae.VFMAEConfig)}[
        request.param
    ]
    return trained(config_from_dict({**config, "encoder": {**config["encoder"], **encoder}}, kind))


def test_what_is_saved_comes_back_without_what_it_began_with(tokenizer, encoder_file, tmp_path, recwarn):
    folder = vfmtok.save_pretrained(tokenizer, tmp_path / "saved")
    encoder_file.unlink()
    again = vfmtok.from_pretrained(folder)
    assert_same(again, tokenizer)
    assert again.config.encoder.weights_sha256 == tokenizer.config.encoder.weights_sha256 is not None
    assert not tokenizer.frozen_parts and not [w for w in recwarn if "frozen" in str(w.message)]
    assert "| encoder's weights | here; trained, from auto, SHA-256" in (folder / "README.md").read_text()


def test_released_names_that_cannot_hold_them_are_refused(tokenizer):
    with pytest.raises(WeightsError, match=r"encoder"):
        vfmtok.to_released(tokenizer)


def test_released_files_that_hold_the_encoder_keep_its_weights():
    """VFM-VAE's do."""
    tokenizer = tiny_vfm_vae("encoder.frozen=false")
    with torch.no_grad():
        for parameter in tokenizer.encoder.parameters():
            parameter.add_(0.1)
    assert_same(vfmtok.load_released(tiny_vfm_vae("encoder.frozen=false"), vfmtok.to_released(tokenizer)), tokenizer)


def test_a_frozen_target_beside_it_is_named_without_this_machines_path(tiny_tokenizer, encoder_file, tmp_path):
    target = f"{{name: test_vit, image_size: 64, levels: [3], weights: {encoder_file}}}"
    tokenizer = tiny_tokenizer("encoder.frozen=false", "encoder.weights=random", f"feature_encoder={target}")
    text = (vfmtok.save_pretrained(tokenizer, tmp_path / "saved") / "config.yaml").read_text()
    assert str(encoder_file) not in text and "weights: auto" in text
    digest = tokenizer.config.feature_encoder.weights_sha256
    assert digest is not None and digest in text
    assert isinstance(tokenizer.config.feature_encoder, EncoderConfig)
