"""The names of the tokenizer's tensors in the published files (see ``weights/name_maps.py``)."""

from vfmtok.decoders import vqgan
from vfmtok.layers import region_sampler
from vfmtok.weights.name_maps import NameMap, below

_LAYER = (("attention_norm", "norm1"), ("attention", "attn1"), ("mlp_norm", "norm2"), ("mlp", "ffnet"))

RELEASED = NameMap(
    (
        *below("sampler", "encode_transformer", region_sampler.RELEASED),
        ("bottleneck", "slots_quant"),
        ("decoder.from_latents", "post_slots_quant"),
        ("decoder.memory_positions", "decode_transformer.slot_position_embedding"),
        ("decoder.memory_norm", "decode_transformer.norm_post1"),
        ("decoder.patch_positions", "decode_transformer.position_embedding"),
        ("decoder.cls_token", "decode_transformer.cls_token"),
        ("decoder.image_mask_token", "decode_transformer.mask_embedding"),
        ("decoder.feature_mask_token", "decode_transformer.dino_mask"),
        ("decoder.feature_norm", "decode_transformer.norm_post2"),
        ("decoder.to_features", "decode_transformer.proj"),
        *below("decoder.layers.*", "decode_transformer.transformer.layers.*", _LAYER),
        *below("decoder.feature_layers.*", "decode_transformer.dino_transformer.layers.*", _LAYER),
        *below("pixel_decoder", "decoder", vqgan.RELEASED),
    ),
    left_out=("encoder",),
)
