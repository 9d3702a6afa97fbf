"""Names of the discriminators in published training checkpoints, and the way in and out for them.

The maps read as those of ``released.py``: (our name, published name), ``*`` standing for one number,
strict both ways. The frozen DINO backbone is neither in the release nor in our state dicts.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vfmtok.errors import WeightsError
from vfmtok.weights.name_maps import Names, check_tensors, rename

DISCRIMINATOR_NAMES: dict[str, Names] = {
    "DinoDiscriminator": (
        ("heads.*.pointwise.conv.weight", "heads.*.0.0.weight_orig"),
        ("heads.*.pointwise.conv.u", "heads.*.0.0.weight_u"),
        ("heads.*.pointwise.conv.v", "heads.*.0.0.weight_v"),
        ("heads.*.pointwise.conv.bias", "heads.*.0.0.bias"),
        ("heads.*.pointwise.norm", "heads.*.0.1"),
        ("heads.*.circular.conv.weight", "heads.*.1.fn.0.weight_orig"),
        ("heads.*.circular.conv.u", "heads.*.1.fn.0.weight_u"),
        ("heads.*.circular.conv.v", "heads.*.1.fn.0.weight_v"),
        ("heads.*.circular.conv.bias", "heads.*.1.fn.0.bias"),
        ("heads.*.circular.norm", "heads.*.1.fn.1"),
        ("heads.*.to_logit.weight", "heads.*.2.weight_orig"),
        ("heads.*.to_logit.u", "heads.*.2.weight_u"),
        ("heads.*.to_logit.v", "heads.*.2.weight_v"),
        ("heads.*.to_logit.bias", "heads.*.2.bias"),
    ),
    "PatchGAN": (("layers", "main"),),
    "StyleGANDiscriminator": (
        ("blocks.*.skip", "blocks.*.conv_res"),
        ("blocks.*.convs.*", "blocks.*.net.*"),
        ("blocks.*.blur.filter", "blocks.*.downsample.0.f"),
        ("blocks.*.halve", "blocks.*.downsample.1"),
        ("blocks.0", "blocks.0"),
        ("last_conv", "final_conv.0"),
        ("to_logit.*", "final_linear.*"),
    ),
}


def load_released_discriminator(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Copy a discriminator's published state (its names) into ``model``, strictly, and return ``model``.

    Raises:
        WeightsError: a tensor is missing, extra or mis-shaped; nothing is loaded then.
    """
    published = to_released_discriminator(model)
    check_tensors(state_dict, {name: tuple(tensor.shape) for name, tensor in published.items()}, type(model).__name__)
    with torch.no_grad():
        for name, tensor in published.items():
            tensor.copy_(state_dict[name])
    return model


def to_released_discriminator(model: nn.Module) -> dict[str, Tensor]:
    """The published names and tensors of ``model``: the inverse. Like ``state_dict``, they share its memory.

    Raises:
        WeightsError: ``model`` is no discriminator that was published.
    """
    names = DISCRIMINATOR_NAMES.get(type(model).__name__)
    if names is None:
        raise WeightsError(f"no names are published for a discriminator '{type(model).__name__}'")
    return {rename(name, names): tensor for name, tensor in model.state_dict().items()}
