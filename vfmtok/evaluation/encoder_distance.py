"""Frechet distance on any encoder, ``fd@<encoder>``: never called FID, which is Inception's.

An image's feature is the mean over the cells of the encoder's last level (of a ViT the patch tokens after the
final norm), at the encoder's own input size. So ``fd@dinov2_vitl14`` is **not** the FD-DINOv2 of Stein et al.
(2023), which reads the class token.

Shapes: B batch, C channels, H, W the image.
"""

import torch
from torch import Tensor

from vfmtok.data.transforms import to_unit_range
from vfmtok.encoders.vfm import ENCODERS, Encoder, EncoderConfig, EncoderFacts
from vfmtok.errors import EvaluationError
from vfmtok.layers.precision import full_float32
from vfmtok.metrics.frechet import FeatureStatistics, Gaussian


def open_encoder(name: str, weights: str) -> Encoder:
    """A name of ``ENCODERS`` or any timm model, at its own input size, for its last level.

    Args:
        weights: "hub", "package" or a file's path, as in ``EncoderConfig``.

    Raises:
        ConfigError: nobody knows the name. WeightsError: the weights are not there, or of another model.
    """
    import timm  # seconds, which only who opens an encoder should wait

    facts = ENCODERS.get(name, EncoderFacts(name, ()))
    published = timm.get_pretrained_cfg(facts.timm_name)
    size = published.input_size[-1] if published is not None else 224
    levels = facts.levels
    if not levels and timm.is_model(facts.timm_name.split(".")[0]):
        with torch.device("meta"):
            levels = (len(timm.create_model(facts.timm_name, pretrained=False, num_classes=0).feature_info),)
    config = EncoderConfig(name=name, image_size=size, levels=levels[-1:] or None, weights=weights)
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
