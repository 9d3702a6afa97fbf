"""The names of the tokenizer's tensors in the published files (see ``weights/name_maps.py``)."""

from vfmtok.decoders import vqgan
from vfmtok.weights.name_maps import NameMap, Names, below

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
    *below("pixel_decoder", "decoder", vqgan.RELEASED),
)

# codebook_used counts the use of codes in training and carries no model.
RELEASED = NameMap(TOKENIZER_NAMES, buffers={"slot_quantize.codebook_used": (65536,)}, left_out=("encoder",))
