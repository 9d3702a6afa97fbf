"""Bottlenecks: latents to the codes of a finite codebook, or to a distribution.

cosine         a learned codebook, by cosine (VFMTok, LlamaGen)
finite_scalar  every dimension rounded to a few values (FSQ)
multi_codebook several learned codebooks, one for each part of the channels (VFM-VAE's discrete mode)
gaussian       a VAE's posterior
"""

from typing import Annotated, Any

from torch import Tensor

from vfmtok.config import Kinds, require
from vfmtok.errors import ConfigError
from vfmtok.quantizers.cosine import CosineConfig, CosineQuantizer
from vfmtok.quantizers.finite_scalar import FiniteScalarConfig, FiniteScalarQuantizer

QUANTIZERS = {CosineConfig: CosineQuantizer, FiniteScalarConfig: FiniteScalarQuantizer}  # configuration -> quantizer
AnyQuantizerConfig = Annotated[Any, Kinds(lambda: QUANTIZERS)]  # of a section ``quantizer:``; the first is the default


def build_quantizer(config: AnyQuantizerConfig) -> CosineQuantizer | FiniteScalarQuantizer:
    """The quantizer of a configuration."""
    return QUANTIZERS[type(config)](config)


def ranked_ids(quantizer: CosineQuantizer | FiniteScalarQuantizer, latents: Tensor, count: int) -> Tensor:
    """latents (B,K,E) -> ids (B,count,K): of the nearest code of every token, of the second nearest, and so on.

    Raises ConfigError if the quantizer does not compare latents with codes, or has not so many.
    """
    if not hasattr(quantizer, "ranked"):
        raise ConfigError(
            f"quantizer.kind {quantizer.config.kind} rounds and has no second nearest code: only cosine ranks codes"
        )
    size = quantizer.config.codebook_size
    require(1 <= count <= size, "the rank of codes", f"must be from 1 to the codebook's size {size}", count)
    return quantizer.ranked(latents, count)
