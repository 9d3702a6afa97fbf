"""Encoders: images to feature levels.

contract  what a tokenizer asks of its encoder
config    what can be set in a vision foundation model
vfm       a vision foundation model through timm
cnn       VQGAN's convolutional encoder, trained with the rest
named     short names of the models of the field
released  names of their tensors in their publishers' files
"""

from collections.abc import Callable

from vfmtok.encoders.config import EncoderConfig
from vfmtok.encoders.contract import FeatureEncoder
from vfmtok.encoders.vfm import Encoder

# Encoders that are not timm's: ``encoder.name`` -> what builds one. Every other name is looked up in timm.
OWN_ENCODERS: dict[str, Callable[[EncoderConfig], FeatureEncoder]] = {}


def build_encoder(config: EncoderConfig) -> FeatureEncoder:
    """The encoder of a configuration. Raises ConfigError or WeightsError."""
    return OWN_ENCODERS.get(config.name, Encoder)(config)
