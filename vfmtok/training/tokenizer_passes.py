"""A tokenizer's training pass, and activations that are computed again in the backward pass.

Shapes: B batch, S image side, K tokens, E code dimensions.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vfmtok.errors import SharedError
from vfmtok.generators.counter_random import Draws
from vfmtok.layers.equivariance import Transformation
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.training.objective import TokenizerObjective


@dataclass
class Made:
    """What a pass made of images, without gradients."""

    target: Tensor  # (B,3,S,S), what the reconstruction is compared with: the images, perhaps transformed
    reconstruction: Tensor  # (B,3,S,S)
    ids: Tensor | None  # (B,K) int64
    latents: tuple[Tensor, ...] | None  # (B,K,E) of each segment


class TokenizerPass(nn.Module):
    """A tokenizer's losses as a forward pass, as DDP wants it: what it returns is all that gradients come from, so that
    DDP can tell parts without any in a step from the others."""

    def __init__(self, tokenizer: Tokenizer, objective: TokenizerObjective):
        super().__init__()
        self.tokenizer, self.objective = tokenizer, objective

    def forward(
        self,
        images: Tensor,
        step: int,
        images_seen: int,
        transformation: Transformation | None = None,
        draws: Draws | None = None,
    ) -> tuple[dict[str, Tensor], Made]:
        """images (B,3,S,S) in [-1,1] -> float32 scalars by name, to be summed, and what was made.

        Args:
            transformation: of the latents or the image, which the reconstruction is to follow.
            draws: random numbers of these images, for latents and losses that need any.

        Raises SharedError if none of the losses that take part in this step has a gradient.
        """
        more = {} if transformation is None else {"transformation": transformation}
        if getattr(self.tokenizer, "encode_draws", False):
            more["draws"] = draws
        out = self.tokenizer(images, **more)
        target = images if transformation is None else transformation.of_images(images)
        terms = self.objective(target, out, step=step, images_seen=images_seen, draws=draws)
        if not any(term.requires_grad for term in terms.values()):
            found = f"only {', '.join(terms)}" if terms else "none"
            raise SharedError(f"step {step} has no loss for what trains ({found} takes part): see loss.terms and train")
        latents = getattr(out, "latents", None)
        if latents is not None:
            latents = tuple(part.detach() for part in (latents if isinstance(latents, tuple) else (latents,)))
        return terms, Made(target, out.reconstruction.detach(), getattr(out, "ids", None), latents)


def checkpoint_activations(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    """Let every submodule of these kinds compute its activations again in the backward pass.

    Returns how many there are. Names of parameters stay as they are.
    """
    chosen = [part for part in module.modules() if isinstance(part, kinds)]
    for part in chosen:
        part.forward = _recomputed(part.forward)
    return len(chosen)


def _recomputed(forward):
    def forward_again_in_backward(*args, **kwargs):
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return forward_again_in_backward
