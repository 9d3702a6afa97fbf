"""The release at its full size, by rule: every published name and shape, DINOv2 under Meta's names in init_models/."""

import argparse

import golden_rule
import pytest
import torch
from saved_models import torch_file

import vfmtok
from vfmtok.pretrained.published import PUBLISHED, VFMTOK


@pytest.mark.slow
def test_from_a_name_to_a_picture(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "init_models").mkdir()
    torch.save(golden_rule.dinov2_weights(), "init_models/dinov2_vitl14_reg4_pretrain.pth")
    parts = {"tokenizer": golden_rule.tokenizer_weights(), "GPT-B": golden_rule.weights("gpt_b_keys.json")}
    args = argparse.Namespace(cloud_save_path=None, lr=1e-4)
    hub.repositories[VFMTOK] = {
        PUBLISHED[VFMTOK].parts[part].file: torch_file({"model": {}, "ema": weights, "steps": 1, "args": args})
        for part, weights in parts.items()
    }
    tokenizer = vfmtok.from_pretrained(VFMTOK)
    gpt = vfmtok.from_pretrained(VFMTOK, "GPT-B")
    pixels = tokenizer.decode_to_uint8(vfmtok.generate(gpt, torch.tensor([207])))
    assert pixels.shape == (1, 256, 256, 3) and pixels.float().std() > 0
    for model, part in ((tokenizer, "tokenizer"), (gpt, "GPT-B")):
        published = vfmtok.to_released(model)
        assert published.keys() == parts[part].keys()
        assert all(torch.equal(tensor, published[name]) for name, tensor in parts[part].items())
    image = golden_rule.image_for("full", 1, 336)
    assert tokenizer.encode(image).ids.unique().numel() > 1
    assert tokenizer.config.encoder.weights == "auto" and len(tokenizer.config.encoder.weights_sha256) == 64
