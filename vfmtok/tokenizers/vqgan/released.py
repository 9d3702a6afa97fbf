"""The names of the tokenizer's tensors in LlamaGen's files (see ``weights/name_maps.py``).

The pilot VQGANs on frozen vision models were never published.
"""

from vfmtok.weights.name_maps import NameMap

RELEASED = NameMap(
    (
        ("encoder.middle.*", "encoder.mid.*"),
        ("encoder.levels.*.blocks.*.shortcut", "encoder.conv_blocks.*.res.*.nin_shortcut"),
        ("encoder.levels.*.blocks.*", "encoder.conv_blocks.*.res.*"),
        ("encoder.levels.*.attentions.*", "encoder.conv_blocks.*.attn.*"),
        ("encoder.levels.*.downsample", "encoder.conv_blocks.*.downsample.conv"),
        ("encoder.conv_in", "encoder.conv_in"),
        ("encoder.norm_out", "encoder.norm_out"),
        ("encoder.conv_out", "encoder.conv_out"),
        ("to_latents", "quant_conv"),
        ("quantizer.codebook", "quantize.embedding.weight"),
        ("from_codes", "post_quant_conv"),
        ("pixel_decoder.middle.*", "decoder.mid.*"),
        ("pixel_decoder.levels.*.blocks.*.shortcut", "decoder.conv_blocks.*.res.*.nin_shortcut"),
        ("pixel_decoder.levels.*.blocks.*", "decoder.conv_blocks.*.res.*"),
        ("pixel_decoder.levels.*.attentions.*", "decoder.conv_blocks.*.attn.*"),
        ("pixel_decoder.levels.*.upsample", "decoder.conv_blocks.*.upsample.conv"),
        ("pixel_decoder.conv_in", "decoder.conv_in"),
        ("pixel_decoder.norm_out", "decoder.norm_out"),
        ("pixel_decoder.conv_out", "decoder.conv_out"),
    ),
    buffers={"quantize.codebook_used": (65536,)},  # counts the use of codes in training
)
