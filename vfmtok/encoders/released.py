"""Names of backbones' tensors in their publishers' files, as timm has the same tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vfmtok.errors import WeightsError
from vfmtok.weights.name_maps import Names, View, rename


def dinov2_official_shapes(timm_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Meta's DINOv2 file for a timm model with these names and shapes.

    timm adds the class token's position to the token itself in models with registers, and calls
    the gated MLP of the giant model fc1 and fc2; the rest bears the same names.
    """
    width = timm_shapes["cls_token"][-1]
    gated = "blocks.0.mlp.fc1.weight" in timm_shapes and timm_shapes["blocks.0.mlp.fc1.weight"][0] != 4 * width
    shapes = {"mask_token": (1, width)}
    for name, shape in timm_shapes.items():
        if name == "reg_token":
            name = "register_tokens"
        elif name == "pos_embed" and "reg_token" in timm_shapes:
            shape = (1, shape[1] + 1, width)
        elif gated:
            name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        shapes[name] = tuple(shape)
    return shapes


# Layers of the package EfficientNet-PyTorch under timm's names; its blocks are counted through, timm's by stage.
EFFICIENTNET_NAMES: Names = (
    ("_conv_stem", "conv_stem"),
    ("_bn0", "bn1"),
    ("_conv_head", "conv_head"),
    ("_bn1", "bn2"),
    ("_fc", "classifier"),
)
EFFICIENTNET_BLOCK_NAMES: Names = (  # expand, depthwise, project
    ("_expand_conv", "conv_pw"),
    ("_bn0", "bn1"),
    ("_depthwise_conv", "conv_dw"),
    ("_bn1", "bn2"),
    ("_project_conv", "conv_pwl"),
    ("_bn2", "bn3"),
)
EFFICIENTNET_FIRST_BLOCK_NAMES: Names = (  # depthwise, project
    ("_depthwise_conv", "conv_dw"),
    ("_bn1", "bn1"),
    ("_project_conv", "conv_pw"),
    ("_bn2", "bn2"),
)


def efficientnet_from_pytorch(state_dict: Mapping[str, Tensor], timm_shapes: Mapping[str, object]) -> dict[str, Tensor]:
    """An EfficientNet(-Lite) state dict of EfficientNet-PyTorch under the names of timm's model.

    Raises WeightsError for a tensor without a counterpart; missing ones are for the caller to find.
    """
    blocks = sorted({tuple(map(int, name.split(".")[1:3])) for name in timm_shapes if name.startswith("blocks.")})
    converted = {}
    for name, tensor in state_dict.items():
        if not name.startswith("_blocks."):
            converted[rename(name, EFFICIENTNET_NAMES)] = tensor
            continue
        _, index, rest = name.split(".", 2)
        if int(index) >= len(blocks):
            raise WeightsError(f"'{name}' belongs to a larger EfficientNet")
        stage, position = blocks[int(index)]
        names = EFFICIENTNET_BLOCK_NAMES if stage else EFFICIENTNET_FIRST_BLOCK_NAMES
        converted[f"blocks.{stage}.{position}.{rename(rest, names)}"] = tensor
    return converted


# SigLIP's tower in the files of transformers (below "vision_model.") as timm's ViT has it, without the pooling head.
SIGLIP: Names = (
    ("patch_embed.proj", "embeddings.patch_embedding"),
    ("blocks.*.norm1", "encoder.layers.*.layer_norm1"),
    ("blocks.*.norm2", "encoder.layers.*.layer_norm2"),
    ("blocks.*.attn.proj", "encoder.layers.*.self_attn.out_proj"),
    ("blocks.*.mlp", "encoder.layers.*.mlp"),
    ("norm", "post_layernorm"),
)
SIGLIP_VIEWS = (
    View("pos_embed", ("embeddings.position_embedding.weight",), lambda table: (table[0],)),
    *(
        View(
            f"blocks.*.attn.qkv.{leaf}",
            tuple(f"encoder.layers.*.self_attn.{part}_proj.{leaf}" for part in "qkv"),
            lambda stacked: stacked.chunk(3),
        )
        for leaf in ("weight", "bias")
    ),
)


def siglip_head_shapes(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the pooling head in a file of transformers, below "vision_model."."""
    return {
        "head.probe": (1, 1, width),
        "head.attention.in_proj_weight": (3 * width, width),
        "head.attention.in_proj_bias": (3 * width,),
        "head.attention.out_proj.weight": (width, width),
        "head.attention.out_proj.bias": (width,),
        "head.layernorm.weight": (width,),
        "head.layernorm.bias": (width,),
        "head.mlp.fc1.weight": (hidden, width),
        "head.mlp.fc1.bias": (hidden,),
        "head.mlp.fc2.weight": (width, hidden),
        "head.mlp.fc2.bias": (width,),
    }


def siglip_from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower of a SigLIP in transformers' names under timm's.

    Raises WeightsError for a tensor of the tower without a counterpart; missing ones are for the caller to find.
    """
    theirs_first = tuple((theirs, ours) for ours, theirs in SIGLIP)
    converted: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, Tensor]] = {}
    for whole_name, tensor in state_dict.items():
        name = whole_name.removeprefix("vision_model.")
        if name == whole_name:  # of the text tower
            continue
        if name == "embeddings.position_embedding.weight":
            converted["pos_embed"] = tensor[None]
        elif name.startswith("head."):
            converted |= _head_in_timm(name.removeprefix("head."), tensor)
        elif ".self_attn." in name and "out_proj" not in name:
            _, _, block, _, projection, leaf = name.split(".")
            stacks.setdefault(f"blocks.{block}.attn.qkv.{leaf}", {})[projection[0]] = tensor
        else:
            converted[rename(name, theirs_first)] = tensor
    for name, parts in stacks.items():
        if sorted(parts) != ["k", "q", "v"]:
            raise WeightsError(f"this file of SigLIP has of '{name}' only {', '.join(sorted(parts))}")
        converted[name] = torch.cat([parts[part] for part in "qkv"])
    return converted


def _head_in_timm(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of the pooling head under timm's names."""
    if name.startswith("attention.in_proj"):
        leaf, width = name.rpartition("_")[2], len(tensor) // 3
        return {f"attn_pool.q.{leaf}": tensor[:width], f"attn_pool.kv.{leaf}": tensor[width:]}
    if name == "probe":
        return {"attn_pool.latent": tensor}
    return {f"attn_pool.{name.replace('attention.out_proj', 'proj').replace('layernorm', 'norm')}": tensor}
