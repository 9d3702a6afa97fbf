"""What a tokenizer asks of its encoder.

Shapes: B batch, N cells of a level, C its channels.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class FeatureEncoder(Protocol):
    """An ``nn.Module`` with these attributes, built by ``build(EncoderConfig)``.

    Attributes:
        config: the resolved ``EncoderConfig``: levels, mean and std are filled in.
        widths: channels of every level that is read.
        grids: (height, width) in cells of every level at ``config.image_size``; the last must be square.
        available_levels: how many levels there are to choose from.

    With ``config.frozen`` its parameters take no gradient and ``forward`` builds no graph. An encoder whose publisher
    has names of its own for the weights also has ``load_official(state_dict)``, strict. One with a class token says so
    (``has_class_token``) and gives it: ``with_class_token(images)`` is one (B,1+N,C) per level, the class token first.
    """

    config: Any
    widths: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    available_levels: int

    def __call__(self, images: Tensor) -> list[Tensor]:
        """images (B,3,H,W) in [-1,1], of any size -> one (B,N,C) per level, in the order of the levels."""

    def with_gradient(self, images: Tensor) -> list[Tensor]:
        """The same with the graph to the images kept even if frozen: for losses measured in these features."""
