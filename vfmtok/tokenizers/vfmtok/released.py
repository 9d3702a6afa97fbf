"""The names of the tokenizer's tensors in the published files (see ``weights/name_maps.py``)."""

from vfmtok.decoders import vqgan
from vfmtok.layers import region_sampler
from vfmtok.weights.name_maps import NameMap, Names, below

TOKENIZER_NAMES: Names = (
    *below("sampler", "encode_transformer", region_sampler.RELEASED),
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
    *below("pixel_decoder", "decoder", vqgan.RELEASED),
)

# codebook_used counts the use of codes in training and carries no model.
RELEASED = NameMap(TOKENIZER_NAMES, buffers={"slot_quantize.codebook_used": (65536,)}, left_out=("encoder",))
