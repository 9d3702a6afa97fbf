"""The names of the discriminators' tensors in published training checkpoints (see ``weights/name_maps.py``).

The frozen DINO backbone is neither in the release nor in our state dicts.
"""

from vfmtok.weights.name_maps import NameMap, load_released, to_released

DINO = NameMap(
    (
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
    )
)
PATCHGAN = NameMap((("layers", "main"),))
STYLEGAN = NameMap(
    (
        ("blocks.*.skip", "blocks.*.conv_res"),
        ("blocks.*.convs.*", "blocks.*.net.*"),
        ("blocks.*.blur.filter", "blocks.*.downsample.0.f"),
        ("blocks.*.halve", "blocks.*.downsample.1"),
        ("blocks.0", "blocks.0"),
        ("last_conv", "final_conv.0"),
        ("to_logit.*", "final_linear.*"),
    )
)

load_released_discriminator, to_released_discriminator = load_released, to_released  # their names in version 0.1
