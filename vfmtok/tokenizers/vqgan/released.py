"""The names of the tokenizer's tensors in LlamaGen's files (see ``weights/name_maps.py``).

The pilot VQGANs on frozen vision models were never published.
"""

from vfmtok.decoders import vqgan
from vfmtok.encoders import cnn
from vfmtok.weights.name_maps import NameMap, below

RELEASED = NameMap(
    (
        *below("encoder", "encoder", cnn.RELEASED),
        ("to_latents", "quant_conv"),
        ("quantizer.codebook", "quantize.embedding.weight"),
        ("from_codes", "post_quant_conv"),
        *below("pixel_decoder", "decoder", vqgan.RELEASED),
    ),
    buffers={"quantize.codebook_used": (65536,)},  # counts the use of codes in training
)
