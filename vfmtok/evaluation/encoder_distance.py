"""Distances on any encoder: of sets of images ``fd@<encoder>``, never called FID, which is Inception's; of two images
``distance@<encoder>``, LPIPS' without learned heads.

An image's feature is the mean over the cells of the encoder's last level (of a ViT the patch tokens after the
final norm), at the encoder's own input size. So ``fd@dinov2_vitl14`` is **not** the FD-DINOv2 of Stein et al.
(2023), which reads the class token.

Shapes: B batch, C channels, H, W the image.
"""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from vfmtok.data.transforms import to_unit_range
from vfmtok.encoders.vfm import ENCODERS, Encoder, EncoderConfig, EncoderFacts
from vfmtok.errors import EvaluationError
from vfmtok.evaluation.results import Measured
from vfmtok.layers.precision import full_float32
from vfmtok.losses.perceptual import cell_distances
from vfmtok.metrics.frechet import FeatureStatistics, Gaussian, frechet_distance


def open_encoder(name: str, weights: str, size: int | None = None, every_level: bool = False) -> Encoder:
    """A name of ``ENCODERS`` or any timm model, for its last level.

    Args:
        weights: "hub", "package" or a file's path, as in ``EncoderConfig``.
        size: px of what it sees; None: its own input size.
        every_level: those of ``ENCODERS``, where it has them.

    Raises:
        ConfigError: nobody knows the name. WeightsError: the weights are not there, or of another model.
    """
    import timm  # seconds, which only who opens an encoder should wait

    facts = ENCODERS.get(name, EncoderFacts(name, ()))
    published = timm.get_pretrained_cfg(facts.timm_name)
    if size is None:
        size = published.input_size[-1] if published is not None else 224
    levels = facts.levels
    if not levels and timm.is_model(facts.timm_name.split(".")[0]):
        with torch.device("meta"):
            levels = (len(timm.create_model(facts.timm_name, pretrained=False, num_classes=0).feature_info),)
    levels = (levels if every_level else levels[-1:]) or None
    config = EncoderConfig(name=name, image_size=size, levels=levels, weights=weights)
    return Encoder(config).eval()


class EncoderStatistics:
    """Statistics of an encoder's features as images come, over all ranks.

    Attributes:
        name: ``fd@<encoder>``, which the distance is printed under.
    """

    def __init__(self, encoder: Encoder):
        self.encoder = encoder.eval()
        self.name = f"fd@{encoder.config.name}"
        self._statistics = FeatureStatistics(encoder.widths[-1])

    def update(self, images: Tensor) -> Tensor:
        """images (B,3,H,W) uint8 -> their features (B,C)."""
        features = encoder_features(self.encoder, images)
        self._statistics.update(features)
        return features

    def compute(self) -> Gaussian:
        """Of all images of all ranks; every rank must call it."""
        return self._statistics.compute()


@torch.no_grad()
def encoder_features(encoder: Encoder, images: Tensor) -> Tensor:
    """images (B,3,H,W) uint8 -> (B,C) float32, without TF32 and autocast."""
    if images.dtype != torch.uint8:
        raise EvaluationError(f"features are those of uint8 images, got {images.dtype}")
    with full_float32(images.device.type):
        return encoder(to_unit_range(images))[-1].float().mean(dim=1)


def feature_protocol(encoder: Encoder, levels: tuple[int, ...]) -> str:
    """Which features those are."""
    config = encoder.config
    of = f"level{'s' if len(levels) > 1 else ''} {', '.join(map(str, levels))}"
    return f"{of} at {config.image_size} px, weights {(config.weights_sha256 or 'unknown')[:8]}"


class HeldOutDistances:
    """Fréchet distances of sets of images to the held-out ones, on an encoder.

    Args:
        held_out: batches (n,3,S,S) uint8.

    Attributes:
        found: the numbers, ``fd@<encoder>, <of what>``.
    """

    def __init__(self, encoder: Encoder, held_out: Iterable[Tensor]):
        self.encoder, self.found = encoder, Measured()
        self.held_out = self._statistics(held_out)

    def add(self, what: str, batches: Iterable[Tensor]) -> None:
        """Of ``batches`` (n,3,S,S) uint8."""
        statistics, held_out = self._statistics(batches), self.held_out
        protocol = f"of {statistics.count:,} images against {held_out.count:,} held-out ones, mean over the cells of "
        name = f"fd@{self.encoder.config.name}, {what}"
        distance = functools.partial(frechet_distance, statistics, held_out, name)
        self.found.add(name, distance, protocol + feature_protocol(self.encoder, self.encoder.levels[-1:]))

    def _statistics(self, batches: Iterable[Tensor]) -> Gaussian:
        statistics = EncoderStatistics(self.encoder)
        for images in batches:
            statistics.update(images.to(self.encoder.mean.device))
        return statistics.compute()


class EncoderDistance:
    """Of two images, mean over levels of mean over cells of the squared distance of unit feature vectors: 0 to 4.

    Attributes:
        name: ``distance@<encoder>``.
        protocol: which features are compared.
    """

    def __init__(self, encoder: Encoder):
        self.encoder = encoder.eval()
        self.name = f"distance@{encoder.config.name}"
        self.protocol = f"squared, of unit features of {feature_protocol(encoder, encoder.levels)}"

    @torch.no_grad()
    def __call__(self, originals: Tensor, reconstructions: Tensor) -> Tensor:
        """Two batches (B,3,H,W) in [-1,1] -> (B,) float32, without TF32 and autocast."""
        with full_float32(originals.device.type):
            levels = zip(self.encoder(originals), self.encoder(reconstructions), strict=True)
            return torch.stack([cell_distances(a, b).mean(dim=1) for a, b in levels]).mean(dim=0)
