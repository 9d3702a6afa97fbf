"""What every generator offers. The rest of the package asks for this, never for a family.

Shapes: B batch; a code is ids (B,K) int64 or latents (B,C,h,w), as ``generator.code`` says.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from vfmtok.code import Code
from vfmtok.generators.counter_random import Draws


@runtime_checkable
class Generator(Protocol):
    """An ``nn.Module`` with these attributes.

    Attributes:
        config: the configuration, a dataclass with ``kind``, ``num_classes``, ``code``, and the class method
            ``fields_of_code(code)``: its fields that a tokenizer's code fixes.
        code: what it learns and samples.
        num_classes: labels are in [0,num_classes).
        null_class: the label that stands for no class.
        released: a ``NameMap``, where weights of this family were published.
        reported_parts: name -> children, where `vfmtok info` shows other parts than the children.
        fields_of_released: where that is so, fields of the configuration that published tensors tell.
    """

    config: Any

    @property
    def code(self) -> Code: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def null_class(self) -> int: ...

    def loss(self, code: Tensor, labels: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """Named float32 scalars, to be summed. ``draws`` gives all chance but the dropout masks inside layers."""

    def sample(self, labels: Tensor, *, seed: int = 0, sample_indices: Tensor | None = None, **settings: Any) -> Tensor:
        """Codes of new images of the classes ``labels`` (B,): sample n of a seed is the same in any batch."""
