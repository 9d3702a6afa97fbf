"""Quantizers: latents to the codes of a finite codebook.

cosine         a learned codebook, by cosine (VFMTok, LlamaGen)
finite_scalar  every dimension rounded to a few values (FSQ)
"""

from vfmtok.quantizers.cosine import CosineConfig, CosineQuantizer
from vfmtok.quantizers.finite_scalar import FiniteScalarConfig, FiniteScalarQuantizer

QUANTIZERS = {CosineConfig: CosineQuantizer, FiniteScalarConfig: FiniteScalarQuantizer}  # configuration -> quantizer
AnyQuantizerConfig = CosineConfig | FiniteScalarConfig  # of a section ``quantizer:``; the first is the default


def build_quantizer(config: AnyQuantizerConfig) -> CosineQuantizer | FiniteScalarQuantizer:
    """The quantizer of a configuration."""
    return QUANTIZERS[type(config)](config)
