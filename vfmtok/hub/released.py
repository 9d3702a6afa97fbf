"""Names of tensors in published checkpoints, and the way in and out for them.

The maps below say everything: each pair is (our name, published name) of a module or tensor, ``*``
standing for one number. Loading is strict both ways: every tensor of the model must come from the
file, every tensor of the file must go into the model, with its exact shape.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vfmtok.errors import WeightsError

Names = tuple[tuple[str, str], ...]

# --------------------------------------------------------------------------------------
# The maps
# --------------------------------------------------------------------------------------

TOKENIZER_NAMES: Names = (
    # region sampler
    ("sampler.queries", "encode_transformer.carrier_tokens"),
    ("sampler.query_positions", "encode_transformer.slots_pos"),
    ("sampler.query_norm", "encode_transformer.norm_pre1"),
    ("sampler.projectors.*", "encode_transformer.projectors.*.mlp"),
    ("sampler.level_norms.*", "encode_transformer.norm_layers.*"),
    (
        "sampler.layers.*.cross_attention.sampling_offsets",
        "encode_transformer.transformer.layers.*.cross_attn.sampling_offsets",
    ),
    (
        "sampler.layers.*.cross_attention.attention_weights",
        "encode_transformer.transformer.layers.*.cross_attn.attention_weights",
    ),
    ("sampler.layers.*.cross_attention.value_proj", "encode_transformer.transformer.layers.*.cross_attn.value_proj"),
    ("sampler.layers.*.cross_attention.output_proj", "encode_transformer.transformer.layers.*.cross_attn.output_proj"),
    ("sampler.layers.*.cross_norm", "encode_transformer.transformer.layers.*.norm1"),
    ("sampler.layers.*.self_attention", "encode_transformer.transformer.layers.*.self_attn"),
    ("sampler.layers.*.self_norm", "encode_transformer.transformer.layers.*.norm3"),
    ("sampler.layers.*.mlp.0", "encode_transformer.transformer.layers.*.linear1"),
    ("sampler.layers.*.mlp.2", "encode_transformer.transformer.layers.*.linear2"),
    ("sampler.layers.*.mlp_norm", "encode_transformer.transformer.layers.*.norm2"),
    # quantizer
    ("to_latents", "pre_slots_quant"),
    ("quantizer.codebook", "slot_quantize.embedding.weight"),
    # ViT decoder
    ("decoder.from_codes", "post_slots_quant"),
    ("decoder.memory_positions", "decode_transformer.slot_position_embedding"),
    ("decoder.memory_norm", "decode_transformer.norm_post1"),
    ("decoder.patch_positions", "decode_transformer.position_embedding"),
    ("decoder.cls_token", "decode_transformer.cls_token"),
    ("decoder.registers", "decode_transformer.register_tokens"),
    ("decoder.image_mask_token", "decode_transformer.mask_embedding"),
    ("decoder.feature_mask_token", "decode_transformer.mask_dino"),
    ("decoder.feature_norm", "decode_transformer.norm_post2"),
    ("decoder.to_features", "decode_transformer.proj"),
    ("decoder.layers.*.attention_norm", "decode_transformer.transformer.layers.*.norm1"),
    ("decoder.layers.*.attention", "decode_transformer.transformer.layers.*.attn1"),
    ("decoder.layers.*.mlp_norm", "decode_transformer.transformer.layers.*.norm2"),
    ("decoder.layers.*.mlp", "decode_transformer.transformer.layers.*.ffnet"),
    # pixel decoder
    ("pixel_decoder.conv_in", "decoder.conv_in"),
    ("pixel_decoder.middle.*", "decoder.mid.*"),
    ("pixel_decoder.levels.*.blocks.*.shortcut", "decoder.conv_blocks.*.res.*.nin_shortcut"),
    ("pixel_decoder.levels.*.blocks.*", "decoder.conv_blocks.*.res.*"),
    ("pixel_decoder.levels.*.upsample", "decoder.conv_blocks.*.upsample.conv"),
    ("pixel_decoder.norm_out", "decoder.norm_out"),
    ("pixel_decoder.conv_out", "decoder.conv_out"),
)

# Published tensors that carry no model: checked and dropped on the way in, zeros on the way out.
TOKENIZER_BUFFERS = {"slot_quantize.codebook_used": (65536,)}

GPT_NAMES: Names = (
    ("class_embedding", "cls_embedding.embedding_table"),
    ("token_embedding", "tok_embeddings"),
    ("layers.*.attention_norm", "layers.*.attention_norm"),
    ("layers.*.attention.wqkv", "layers.*.attention.wqkv"),
    ("layers.*.attention.wo", "layers.*.attention.wo"),
    ("layers.*.ffn_norm", "layers.*.ffn_norm"),
    ("layers.*.feed_forward", "layers.*.feed_forward"),
    ("norm", "norm"),
    ("output", "output"),
)

# A model says by its attribute ``released_names`` which of these is its own.
RELEASED = {"tokenizer": (TOKENIZER_NAMES, TOKENIZER_BUFFERS), "gpt": (GPT_NAMES, {})}

# --------------------------------------------------------------------------------------
# In and out
# --------------------------------------------------------------------------------------


def load_released(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Copy a published checkpoint (its names) into ``model``, a VFMTok or a GPT, strictly, and return ``model``.

    Raises:
        WeightsError: a tensor is missing, extra or mis-shaped, or the model has a part that was
            never published (an ablation's). The first names are listed; nothing is loaded.
    """
    published, buffers = _published_tensors(model)
    expected = {name: tensor.shape for name, tensor in published.items()} | buffers
    check_tensors(state_dict, expected, type(model).__name__)
    with torch.no_grad():
        for name, tensor in published.items():
            tensor.copy_(state_dict[name])
    return model


def to_released(model: nn.Module) -> dict[str, Tensor]:
    """The published names and tensors of ``model``: the exact inverse of ``load_released``.

    Like ``state_dict``, the tensors share the model's memory. A tokenizer's frozen encoder is left
    out, as in the release. Raises WeightsError if a part of the model has no published name.
    """
    published, buffers = _published_tensors(model)
    return published | {name: torch.zeros(shape) for name, shape in buffers.items()}


def _published_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """The model's tensors under their published names, and the shapes of what else the files hold."""
    kind = getattr(model, "released_names", None)
    if kind not in RELEASED:
        raise WeightsError(f"nothing like a {type(model).__name__} was published: it has no released names")
    names, buffers = RELEASED[kind]
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    return {rename(name, names): tensor for name, tensor in tensors.items()}, buffers


def rename(name: str, names: Names) -> str:
    """The second name of the pair that ``name`` begins with the first of. Raises WeightsError if there is none."""
    for ours, theirs in names:
        match = re.fullmatch(re.escape(ours).replace(r"\*", r"(\d+)") + r"(|\..+)", name)
        if match:
            *numbers, rest = match.groups()
            for number in numbers:
                theirs = theirs.replace("*", number, 1)
            return theirs + rest
    raise WeightsError(f"'{name}' has no name in the other format: one of the two models has a part the other lacks")


def check_tensors(state_dict: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Raise WeightsError unless ``state_dict`` has exactly the names and shapes of ``expected``."""
    missing = [name for name in expected if name not in state_dict]
    unexpected = [name for name in state_dict if name not in expected]
    found = {name: tuple(getattr(state_dict[name], "shape", ())) for name in expected if name in state_dict}
    misshaped = [
        f"{name} {found[name]} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and (found[name] != tuple(shape) or not isinstance(state_dict[name], Tensor))
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if names
    ]
    if problems:
        raise WeightsError(f"these weights are not those of {model}: {'; '.join(problems)}")


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
