"""In-painting: a part of an image is kept, and a generator of ids draws the rest.

The part that is not given is mid-grey when the image is encoded. The published figure does not say how its authors
filled it; and tokens of other places may have seen it, for encoders look at the whole image.

Shapes: B batch, K tokens, S image side, h, w the grid of the tokens.
"""

from typing import Any

import torch
from torch import Tensor

from vfmtok.errors import ConfigError
from vfmtok.generators.contract import Generator


def inpaint(
    generator: Generator, ids: Tensor, kept: Tensor, labels: Tensor, *, seed: int = 0, **sampling: Any
) -> Tensor:
    """New ids for the tokens that are not kept.

    Args:
        ids: (B,K) int64, of images whose other tokens do not matter.
        kept: (K,) bool. A GPT that draws row by row needs an image's first tokens, such as Hita's holistic ones and the
            upper rows; a RAR, or a GPT trained on permuted orders, takes any.
        labels: (B,) int64, the classes; ``generator.null_class`` for none.
        seed: any integer in [0,2^64); with ``sample_indices`` (B,) among ``sampling`` as for ``generate``.
        sampling: settings of ``generator.sample``.

    Returns:
        ids (B,K), the kept ones unchanged.

    Raises:
        ConfigError: the generator draws no ids or can't draw these tokens last; a label, seed or setting is impossible.
    """
    if not hasattr(generator, "any_order"):
        raise ConfigError(
            f"a generator of kind '{generator.config.kind}' does not draw token by token: it fills nothing in"
        )
    with torch.no_grad():
        return generator.sample(labels, known=(ids, kept), seed=seed, **sampling)
