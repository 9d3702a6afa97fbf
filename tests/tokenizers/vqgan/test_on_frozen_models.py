"""VQGANs on frozen vision models: the paper's pilot study."""

import pytest
import torch

from vfmtok.encoders import vfm
from vfmtok.encoders.config import EncoderConfig
from vfmtok.tokenizers import build_tokenizer
from vfmtok.tokenizers.vqgan.config import VQGANConfig


@pytest.mark.parametrize(("name", "levels", "last"), [("test_vit", (2, 4), 4), ("tf_efficientnet_lite0", None, 5)])
def test_the_last_level_is_read_of_a_model_that_is_built_once(monkeypatch, name, levels, last):
    built, create = [], vfm._create_backbone
    monkeypatch.setattr(vfm, "_create_backbone", lambda *names: built.append(names) or create(*names))
    side = {"test_vit": 10, "tf_efficientnet_lite0": 2}[name]  # 160 px in cells of 16; 64 px at stride 32
    encoder = EncoderConfig(name=name, weights="random", image_size={10: 160, 2: 64}[side], levels=levels)
    tokenizer = build_tokenizer(VQGANConfig(encoder=encoder, image_size=16 * side)).eval()
    assert len(built) == 1 and tokenizer.config.encoder.levels == (last,)
    ids = tokenizer.encode(torch.rand(1, 3, 16 * side, 16 * side) * 2 - 1).ids
    assert ids.shape == (1, side**2) and tokenizer.decode(ids).shape == (1, 3, 16 * side, 16 * side)
