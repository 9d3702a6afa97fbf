"""Encoders: images to feature levels.

contract  what a tokenizer asks of its encoder
config    what can be set in a vision foundation model
vfm       a vision foundation model through timm
cnn       VQGAN's convolutional encoder, trained with the rest
named     short names of the models of the field
vit_levels  the levels of a ViT, its embedding included, at any size
released  names of their tensors in their publishers' files
"""

import contextlib
from collections.abc import Callable

from vfmtok.encoders.config import EncoderConfig
from vfmtok.encoders.contract import FeatureEncoder
from vfmtok.encoders.vfm import Encoder, same_weights_always
from vfmtok.errors import ConfigError

# Encoders that are not timm's: ``encoder.name`` -> what builds one. Every other name is looked up in timm.
OWN_ENCODERS: dict[str, Callable[[EncoderConfig], FeatureEncoder]] = {}


def build_encoder(config: EncoderConfig) -> FeatureEncoder:
    """The encoder of a configuration. Raises ConfigError or WeightsError."""
    if config.name not in OWN_ENCODERS:
        return Encoder(config)
    if not config.starts_random:
        raise ConfigError(
            f"encoder.weights: no weights are published for '{config.name}', which is not timm's: set it to random"
        )
    with same_weights_always() if config.frozen else contextlib.nullcontext():
        return OWN_ENCODERS[config.name](config)
