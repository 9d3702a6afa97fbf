"""What every tokenizer offers. The rest of the package asks for this, never for a family.

Shapes: B batch, S image side.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmtok.code import Code


class Encoding(Protocol):
    """What ``encode`` returns: the code and what was found on the way. Families add fields of their own."""

    losses: dict[str, Tensor]  # float32 scalars of the quantizer or posterior, already weighted

    # ids: Tensor, (B,K) int64, where ``tokenizer.code`` is Ids
    # latents: Tensor, (B,C,h,w), where it is Latents; (B,K,E) before quantization, where it is Ids
    # features: list[Tensor], of a frozen encoder, where there is one
    # region_tokens: Tensor, (B,K,D), what each token says before quantization, where a linear probe may learn from it


class TokenizerOutput(Protocol):
    """What one training pass returns. Fields that a family has not are None or absent."""

    reconstruction: Tensor  # (B,3,S,S), nominally in [-1,1]
    losses: dict[str, Tensor]  # as ``Encoding.losses``

    # ids: Tensor, (B,K) int64, where ``tokenizer.code`` is Ids: usage of the codebook is counted by them
    # latents: Tensor, (B,K,E), what was quantized, a tuple of them where there are several segments: where
    #     ``codebook.revive`` is to work; for ``codebook.kmeans`` the Encoding has them, too
    # features: list[Tensor], of a frozen encoder, where ``loss.perceptual: encoder`` is to work
    # feature_reconstruction, feature_target: Tensor, (B,N,C) both, where ``loss.feature`` is to compare them
    # posterior: with ``mean`` and ``logvar``, (B,C,h,w) both, of latents that are drawn: of the loss "kl"
    # pyramid: dict[int, Tensor], smaller images (B,3,r,r) by their side where the image has ``config.image_size``, of
    #     the losses "multi-resolution-<side>"; of a transformed pass they are smaller than their side says
    # projected_latents: Tensor, (B,D,h,w), and alignment_features: Tensor, (B,D,H,W), of a frozen encoder: of
    #     ``loss.alignment``


class SamplingPoints(NamedTuple):
    """Where in the image the tokens of the first segment read, in one layer. Places are (x,y), in [0,1] inside it."""

    layer: str  # for people, such as "layer 1 of 6"
    references: Tensor  # (K,2): each token's own place
    locations: Tensor  # (B,K,P,2)
    weights: Tensor  # (B,K,P), from 0 on: how much of the token comes from there


@runtime_checkable
class Tokenizer(Protocol):
    """An ``nn.Module`` with these attributes.

    Attributes:
        config: the resolved configuration, a dataclass with ``kind``, ``image_size`` and ``code``.
        code: what ``encode`` makes and ``decode`` takes.
        device: where it computes.
        frozen_parts: names of submodules that training leaves as they are and checkpoints leave out.
        last_layer: the weight that makes the pixels, by whose gradients an adaptive weight balances losses.
        recomputed: classes of submodules that recompute their activations in the backward pass where asked.
        reported_parts: name -> children, where `vfmtok info` shows other parts than the children.
        released: a ``NameMap``, where weights of this family were published.
        makes_losses: False where ``losses`` is always empty, so that their weight means nothing; else it may be absent.
        quantizers: names of submodules, one for each segment of the code, whose codebooks training may care for
            (``training.codebook_care``). Passes and encodings then have ``latents``: (B,K,E), or one of a segment each.

    What only some families have is absent elsewhere, and pictures and numbers of it are left out:

        has_sampling_points: True where tokens read the image at points, which ``sampling_points(images)`` then gives:
            images (B,3,H,W) in [-1,1] -> list[SamplingPoints], the first, a middle and the last layer.
        code_vectors(segment): (V,E) behind the ids of a segment, near for codes that mean like things.
        ranked_ids(images, count): ids (B,count,K) of the nearest codes, of the second nearest, and so on; ConfigError
            where a quantizer has no such order.
        region_tokens: of an encoding, see ``Encoding``.
        loss_inputs: names of those of posterior, pyramid, projected_latents and alignment_features that passes of this
            configuration have: a recipe that names losses of others is refused before the first step.
        latent_layer: the weight that makes the latents, by whose gradients the alignment loss is balanced.
        pyramid_sides: the sides in ``pyramid``.
        takes_transformations: True where a pass also takes ``transformation``, a ``layers.equivariance.Transformation``
            or None: what is decoded then is to be compared with ``transformation.of_images(images)``. Where not every
            size can be decoded, ``check_scale(scale)`` raises ConfigError for a scale of such.
        encode_draws: True where encoding is a matter of chance (a VAE's posterior): ``encode`` and a training pass then
            take ``draws`` besides, the random numbers of these samples (``generators.counter_random.Draws``), and
            without it encode to the likeliest code. Its encoding then has ``posterior`` with ``mean`` and ``std``
            (B,C,h,w), from which latent caches and generators draw themselves.
    """

    config: Any
    frozen_parts: tuple[str, ...]
    recomputed: tuple[type, ...]

    @property
    def code(self) -> Code: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def last_layer(self) -> Tensor: ...

    def encode(self, images: Tensor) -> Encoding:
        """images (B,3,H,W) float in [-1,1] -> Encoding."""

    def decode(self, code: Tensor) -> Tensor:
        """ids (B,K) int64 or latents (B,C,h,w) -> images (B,3,S,S), unclamped, nominally in [-1,1]."""

    def decode_to_uint8(self, code: Tensor, size: int = 256) -> Tensor:
        """The same as pixels (B,size,size,3) uint8."""

    def __call__(self, images: Tensor) -> TokenizerOutput:
        """A training pass: images (B,3,S,S) in [-1,1] at ``config.image_size``."""


def code_of(encoding: Encoding, code: Code) -> Tensor:
    """The part of an encoding that ``decode`` takes and a generator learns."""
    return encoding.ids if hasattr(code, "segments") else encoding.latents


def to_pixels(images: Tensor, size: int, offset: float = 128.0) -> Tensor:
    """(B,3,S,S), nominally in [-1,1] -> (B,size,size,3) uint8: bicubic, x * 127.5 + offset, clamp, truncate.

    uint8 images that ``to_unit_range`` made floats come back exactly where ``size`` is S. Some publications truncate
    from 127.5, which makes everything half a level darker.
    """
    images = F.interpolate(images.float(), (size, size), mode="bicubic", align_corners=False)
    return (images * 127.5 + offset).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def check_images(images: Tensor, size: int | None = None) -> None:
    """Raise ValueError unless images are (B,3,H,W) floats, of ``size`` if it is given."""
    fits = images.ndim == 4 and images.shape[1] == 3 and images.is_floating_point()
    if not fits or (size is not None and images.shape[2:] != (size, size)):
        wanted = f"{size},{size}" if size else "H,W"
        raise ValueError(
            f"images must be a float tensor (B,3,{wanted}) in [-1,1], got {tuple(images.shape)} {images.dtype}"
        )
