"""A VFMAE of a size that a test can wait for."""

from typing import Any

import torch

import vfmtok
from vfmtok.config import config_from_dict
from vfmtok.tokenizers.vfmae.config import VFMAEConfig

CONFIG = {
    "image_size": 32, "dim": 64, "latent_channels": 6,
    "encoder": {"name": "test_vit", "image_size": 64, "levels": [3, 6], "resize": "blur", "weights": "random"},
    "sampler": {"num_tokens": 16, "depth": 2, "heads": 4, "points": 2, "mlp_dim": 64},
    "decoder": {"depth": 2, "heads": 4, "mlp_dim": 64, "attention_dropout": 0.0},
    "pixel_decoder": {"channels": 32, "multipliers": [2, 1, 1], "res_blocks": 1},
}  # fmt: skip
NO_CLASS_TOKEN = {"name": "test_efficientnet", "image_size": 32, "levels": [2, 3], "weights": "random"}


def tokenizer(**changes: Any) -> vfmtok.VFMAE:
    """4x4 latents of 6 channels of 32 px images; an encoder with a class token and 4x4 cells."""
    torch.manual_seed(0)
    return vfmtok.build_tokenizer(config_from_dict(CONFIG | changes, VFMAEConfig)).eval()


def dit() -> vfmtok.DiT:
    """A LightningDiT of its latents and three classes."""
    sizes = {"in_channels": 6, "size": 4, "width": 32, "depth": 1, "heads": 2, "num_classes": 3}
    torch.manual_seed(2)
    model = vfmtok.DiT(vfmtok.dit_config("LightningDiT-B/1", **sizes)).eval()
    for parameter in model.parameters():  # what begins at zero would sample noise
        torch.nn.init.normal_(parameter, std=0.1)
    model.use_statistics(torch.full((6, 1, 1), 0.5), torch.full((6, 1, 1), 2.0))
    return model
