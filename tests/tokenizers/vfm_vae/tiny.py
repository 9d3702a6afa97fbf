"""The tiny VFM-VAE of the golden data, and its weights by the rule."""

import golden_rule
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import vfmtok

ROOT = golden_rule.GOLDEN.parents[1]
TOWER = "vfm_encoder.encoder.vision_model."
FOLDER = "vfmvae"
TINY = (
    "image_size=64",
    "level_width=16",
    "expansion=8",
    "encoder.name=vit_tiny_patch4_siglip_test",
    "encoder.image_size=128",
    "encoder.levels=[0, 2, 4]",
    "bottleneck.channels=8",
    "decoder.widths=[64, 32, 16, 8]",
    "decoder.injected=[32, 16, 8, 8]",
    "decoder.kernels=[5, 5, 7, 7]",
    "decoder.blurs=[3, 3, 3, 5]",
    "decoder.layers=[4, 4, 4, 4]",
    "decoder.attentions=[2, 1, 1, 0]",
    "decoder.style_dim=32",
)
DISCRETE = (
    "bottleneck.kind=multi-codebook",
    "bottleneck.codebooks=4",
    "bottleneck.codebook_size=64",
    "bottleneck.channels=16",
    "bottleneck.entropy_weight=0.1",
)


@timm.models.register_model
def vit_tiny_patch4_siglip_test(pretrained=False, **options) -> VisionTransformer:
    """SigLIP's ViT in small: tanh-GELU, no class token, no final pooling that anybody reads."""
    options = {name: value for name, value in options.items() if name in ("num_classes", "img_size")}
    model = VisionTransformer(
        **{"img_size": 128, **options},
        patch_size=4,
        embed_dim=64,
        depth=4,
        num_heads=4,
        mlp_ratio=2,
        class_token=False,
        global_pool="map",
        act_layer="gelu_tanh",
    )
    model.pretrained_cfg = {
        "architecture": "vit_tiny_patch4_siglip_test",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "classifier": "head",
    }
    return model


def rule_weights(keys: dict[str, list[int]], prefix: str) -> dict[str, Tensor]:
    """By the README of the golden data: the rule of ``golden_rule`` and what else is said there."""
    weights = {}
    for name, shape in keys.items():
        tensor = golden_rule.tensor_for(prefix + name.replace("post_quant", "unquant"), shape)
        if name.endswith(("zero_k_bias", "vocab_usage")) or name == "mapping.x_avg":
            tensor = torch.zeros(shape)
        elif name.endswith("blur_weight"):
            row = torch.tensor({3: [1.0, 2, 1], 5: [1.0, 4, 6, 4, 1]}[shape[-1]])
            tensor = (torch.outer(row, row) / row.sum() ** 2).expand(shape).contiguous()
        elif ".affine_pw1.proj." in name or ".torgb.affine.proj." in name:
            tensor = tensor * shape[1] ** 0.5 if name.endswith("weight") else tensor + 1
        elif name.startswith("mapping.mlp."):
            tensor = tensor * (100 * shape[1] ** 0.5 if name.endswith("weight") else 100)
        weights[name] = tensor
    return weights


def noise(case: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal."""
    return 2 * golden_rule.tensor_for(f"token.noise.{case}", shape)


class GivenNoise:
    """What ``encode`` takes for random numbers: those of the golden data."""

    def __init__(self, case: str):
        self.case = case

    def normal(self, purpose: str, count: int) -> Tensor:
        side = {2048: 16, 1152: 12, 512: 8}[count]
        return noise(self.case, (2, 8, side, side)).flatten(1)


def tiny(*overrides: str, keys: str = "tiny_keys") -> torch.nn.Module:
    """The tiny model in eval mode with the weights that the rule gives the names in ``keys``."""
    config = vfmtok.load_config(ROOT / "configs/vfm_vae/stage1.yaml", [*TINY, *overrides])
    tokenizer = vfmtok.build_tokenizer(config).eval()
    return vfmtok.load_released(tokenizer, rule_weights(variant(keys), "vfmvae_tiny."))


def variant(keys: str) -> dict[str, list[int]]:
    """Names and shapes; of the variants, the adapter's alone are kept, and noise and projection left out."""
    shapes = golden_rule.shapes(f"{FOLDER}/tiny_keys.json")
    if keys in ("tiny_conv_keys", "tiny_deep_keys"):
        adapter = golden_rule.shapes(f"{FOLDER}/{keys}.json")
        rest = {n: s for n, s in shapes.items() if "ldm_adapter" not in n and "noise_" not in n}
        return rest | adapter
    return golden_rule.shapes(f"{FOLDER}/{keys}.json")


def close(found, expected, tolerance: float = 1e-4) -> None:
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape
    assert (found.detach() - expected).abs().max() <= tolerance * expected.abs().max()
