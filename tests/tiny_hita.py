"""A Hita and its GPT of sizes that a test can wait for."""

import torch

import vfmtok
from vfmtok.config import config_from_dict
from vfmtok.tokenizers.hita.config import HitaConfig

CONFIG = {
    "image_size": 32, "dim": 64, "num_holistic": 6, "depth": 1, "heads": 2, "mlp_dim": 64,
    "encoder": {"name": "test_vit", "image_size": 64, "levels": [6], "resize": "blur", "weights": "random"},
    "patch_encoder": {"channels": 32, "multipliers": [1, 1, 1, 1], "res_blocks": 1},
    "holistic_quantizer": {"codebook_size": 32, "code_dim": 6}, "patch_quantizer": {"codebook_size": 32, "code_dim": 4},
    "pixel_decoder": {"channels": 32, "multipliers": [1, 1, 1, 1], "res_blocks": 1, "coarse_attention": True},
}  # fmt: skip


def tokenizer() -> vfmtok.Hita:
    """6 holistic tokens and 4x4 patches, of 32 codes each."""
    torch.manual_seed(0)
    return vfmtok.build_tokenizer(config_from_dict(CONFIG, HitaConfig)).eval()


def gpt(classes: int = 3) -> vfmtok.GPT:
    torch.manual_seed(1)
    sizes = {"n_layer": 2, "n_head": 2, "dim": 32, "vocab_size": 32, "num_tokens": 16, "num_holistic": 6}
    model = vfmtok.GPT(vfmtok.gpt_config("GPT-B", num_classes=classes, **sizes)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.5)
    return model
