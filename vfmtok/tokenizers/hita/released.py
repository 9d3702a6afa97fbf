"""The names of the tokenizer's tensors in the published files (see ``weights/name_maps.py``)."""

from vfmtok.decoders import vqgan
from vfmtok.encoders import cnn
from vfmtok.weights.name_maps import NameMap, below

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


RELEASED = NameMap(
    (
        *below("patch_encoder", "encoder", cnn.RELEASED),
        ("holistic_encoder.queries", "encode_transformer.carrier_tokens"),
        ("holistic_encoder.patch_positions", "encode_transformer.pos_embed"),
        ("holistic_encoder.project.*", "encode_transformer.proj.mlp.*"),
        ("holistic_encoder.norm", "encode_transformer.norm_pre1"),
        ("holistic_encoder.causal_norm", "encode_transformer.norm_pre2"),
        *below("holistic_encoder.layers.*", "encode_transformer.transformer1.layers.*", _MIXING),
        *below("holistic_encoder.causal_layers.*", "encode_transformer.transformer2.layers.*", _LAYER),
        ("to_holistic_latents", "pre_slots_quant"),
        ("to_patch_latents", "quant_conv"),
        ("holistic_quantizer.codebook", "slot_quantize.embedding.weight"),
        ("patch_quantizer.codebook", "quantize.embedding.weight"),
        ("from_holistic_codes", "post_slots_quant"),
        ("from_patch_codes", "post_quant_conv"),
        ("fusion.patch_positions", "decode_transformer.position_embedding"),
        ("fusion.holistic_positions", "decode_transformer.slot_position_embedding"),
        ("fusion.norm", "decode_transformer.norm"),
        *below("fusion.layers.*", "decode_transformer.transformer.layers.*", _LAYER),
        ("fusion.feature_mask_token", "decode_transformer.mask_embedding"),
        ("fusion.feature_norm", "decode_transformer.norm_vfm"),
        ("fusion.to_features", "decode_transformer.proj"),
        *below("pixel_decoder", "decoder", vqgan.RELEASED),
    ),
    # They count the use of codes in training.
    buffers={"quantize.codebook_used": (65536,), "slot_quantize.codebook_used": (65536,)},
    left_out=("encoder",),
)
