"""The names of the tokenizer's tensors in the published files (see ``weights/name_maps.py``)."""

from vfmtok.weights.name_maps import NameMap

# q, k, v and output projections, norms and the MLP bear these names in every transformer.
_LAYER = (("attention_norm", "norm1"), ("attention", "attn1"), ("mlp_norm", "norm2"), ("mlp", "ffnet"))
_MIXING = (
    ("attention_norm", "norm1"),
    ("to_q", "attn1.to_q"),
    ("to_k", "attn1.to_k"),
    ("to_v", "attn1.to_v"),
    ("to_out", "attn1.to_out.0"),
    ("mlp_norm", "norm2"),
    ("mlp", "ffnet"),
)


def _in_every_layer(ours: str, theirs: str, names: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{ours}.*.{own}", f"{theirs}.*.{published}") for own, published in names)


RELEASED = NameMap(
    (
        ("patch_encoder.middle.*", "encoder.mid.*"),
        ("patch_encoder.levels.*.blocks.*.shortcut", "encoder.conv_blocks.*.res.*.nin_shortcut"),
        ("patch_encoder.levels.*.blocks.*", "encoder.conv_blocks.*.res.*"),
        ("patch_encoder.levels.*.attentions.*", "encoder.conv_blocks.*.attn.*"),
        ("patch_encoder.levels.*.downsample", "encoder.conv_blocks.*.downsample.conv"),
        ("patch_encoder.conv_in", "encoder.conv_in"),
        ("patch_encoder.norm_out", "encoder.norm_out"),
        ("patch_encoder.conv_out", "encoder.conv_out"),
        ("holistic_encoder.queries", "encode_transformer.carrier_tokens"),
        ("holistic_encoder.patch_positions", "encode_transformer.pos_embed"),
        ("holistic_encoder.project.*", "encode_transformer.proj.mlp.*"),
        ("holistic_encoder.norm", "encode_transformer.norm_pre1"),
        ("holistic_encoder.causal_norm", "encode_transformer.norm_pre2"),
        *_in_every_layer("holistic_encoder.layers", "encode_transformer.transformer1.layers", _MIXING),
        *_in_every_layer("holistic_encoder.causal_layers", "encode_transformer.transformer2.layers", _LAYER),
        ("to_holistic_latents", "pre_slots_quant"),
        ("to_patch_latents", "quant_conv"),
        ("holistic_quantizer.codebook", "slot_quantize.embedding.weight"),
        ("patch_quantizer.codebook", "quantize.embedding.weight"),
        ("from_holistic_codes", "post_slots_quant"),
        ("from_patch_codes", "post_quant_conv"),
        ("fusion.patch_positions", "decode_transformer.position_embedding"),
        ("fusion.holistic_positions", "decode_transformer.slot_position_embedding"),
        ("fusion.norm", "decode_transformer.norm"),
        *_in_every_layer("fusion.layers", "decode_transformer.transformer.layers", _LAYER),
        ("fusion.feature_mask_token", "decode_transformer.mask_embedding"),
        ("fusion.feature_norm", "decode_transformer.norm_vfm"),
        ("fusion.to_features", "decode_transformer.proj"),
        ("pixel_decoder.middle.*", "decoder.mid.*"),
        ("pixel_decoder.levels.*.blocks.*.shortcut", "decoder.conv_blocks.*.res.*.nin_shortcut"),
        ("pixel_decoder.levels.*.blocks.*", "decoder.conv_blocks.*.res.*"),
        ("pixel_decoder.levels.*.attentions.*", "decoder.conv_blocks.*.attn.*"),
        ("pixel_decoder.levels.*.upsample", "decoder.conv_blocks.*.upsample.conv"),
        ("pixel_decoder.conv_in", "decoder.conv_in"),
        ("pixel_decoder.norm_out", "decoder.norm_out"),
        ("pixel_decoder.conv_out", "decoder.conv_out"),
    ),
    # They count the use of codes in training.
    buffers={"quantize.codebook_used": (65536,), "slot_quantize.codebook_used": (65536,)},
    left_out=("encoder",),
)
