"""Names of backbones' tensors in their publishers' files, as timm has the same tensors."""

from collections.abc import Mapping

from torch import Tensor

from vfmtok.errors import WeightsError
from vfmtok.weights.name_maps import Names, rename


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
