"""Models of the other published systems at a tiny size, as their publishers' files have them."""

import argparse
from collections.abc import Mapping

import golden_rule
import torch
from saved_models import torch_file
from torch import Tensor, nn

import vfmtok
from vfmtok.pretrained.published import HITA, LLAMAGEN, PUBLISHED, VFMTOK
from vfmtok.weights.name_maps import to_released

# Overrides that make the published configurations small; what is left out stays as published.
VQGAN = (
    "image_size=32", "z_channels=32", "encoder.channels=32", "encoder.multipliers=[1,1,1]", "encoder.res_blocks=1",
    "pixel_decoder.channels=32", "pixel_decoder.multipliers=[1,1,1]", "quantizer.codebook_size=48",
)  # fmt: skip
GPT = ("n_layer=2", "n_head=4", "dim=32", "num_tokens=64", "vocab_size=48")
RAR = ("n_layer=2", "n_head=4", "dim=32", "ffn_hidden=40", "num_tokens=16", "vocab_size=64", "num_classes=3")
VFMAE = (
    "image_size=32", "dim=32", "latent_channels=4", "encoder.name=test_vit", "encoder.image_size=64",
    "encoder.levels=[3,6]", "encoder.weights=random", "sampler.num_tokens=16", "sampler.depth=1", "sampler.mlp_dim=32",
    "decoder.depth=2", "decoder.mlp_dim=32", "pixel_decoder.channels=32", "pixel_decoder.multipliers=[1,1,1]",
)  # fmt: skip
HITA_GPT = ("n_layer=2", "n_head=4", "dim=32", "num_tokens=16", "num_holistic=6", "vocab_size=40")


def by_rule(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights drawn from the published names by golden_rule."""
    weights = {name: golden_rule.tensor_for(name, t.shape) for name, t in to_released(model).items()}
    buffers = {name: torch.zeros_like(tensor) for name, tensor in weights.items() if name.endswith("codebook_used")}
    return vfmtok.load_released(model, weights | buffers).eval().requires_grad_(False)


def model_of(repository: str, part: str, overrides: tuple[str, ...]) -> nn.Module:
    """A tiny one of a published part."""
    row = PUBLISHED[repository].parts[part]
    config = vfmtok.config.with_overrides(row.config, overrides)
    build = vfmtok.build_tokenizer if row.section == "tokenizer" else vfmtok.build_generator
    return by_rule(build(config))


def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Other weights of the same names and shapes."""
    return {name: tensor + 1 for name, tensor in tensors.items()}


def training_checkpoint(model: nn.Module, taken: str) -> bytes:
    """What a published training saves, its weights under ``taken``, other ones under the other name."""
    weights = to_released(model)
    names = {"ema", "model"} - {taken}
    content = {taken: weights, **{name: moved(weights) for name in names}}
    return torch_file(content | {"steps": 7, "optimizer": {}, "args": argparse.Namespace(lr=1e-4)})


__all__ = ["GPT", "HITA", "HITA_GPT", "LLAMAGEN", "RAR", "VFMAE", "VFMTOK", "VQGAN", "by_rule", "model_of", "moved"]
