"""The names of the discriminators' tensors in published training checkpoints (see ``weights/name_maps.py``).

The frozen DINO backbone is neither in the release nor in our state dicts.
"""

from vfmtok.weights.name_maps import NameMap, load_released, to_released


def _dino(blocks: str, to_logit: str) -> NameMap:
    """The names of the heads, whose two blocks and last convolution a publication calls so."""
    pairs = []
    for ours, theirs in (("pointwise", f"{blocks}0."), ("circular", f"{blocks}1.fn."), ("to_logit", to_logit)):
        conv, published = (ours, theirs) if ours == "to_logit" else (f"{ours}.conv", f"{theirs}0.")
        for tensor, name in (("weight", "weight_orig"), ("u", "weight_u"), ("v", "weight_v"), ("bias", "bias")):
            pairs.append((f"heads.*.{conv}.{tensor}", f"heads.*.{published}{name}"))
        if ours != "to_logit":
            pairs.append((f"heads.*.{ours}.norm", f"heads.*.{theirs}1"))
    return NameMap(tuple(pairs))


DINO = _dino("", "2.")
DINO_VFMVAE = _dino("main.", "cls.")
PATCHGAN = NameMap((("layers", "main"),))
MULTISCALE_PATCHGAN = NameMap(
    (
        ("scales.*.*.conv", "patchgan_discriminator.scale*_layer*.0"),
        ("scales.*.*.norm", "patchgan_discriminator.scale*_layer*.1"),
    )
)
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
