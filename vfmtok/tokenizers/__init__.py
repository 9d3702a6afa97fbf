"""Tokenizers: an image to its code and back. A family is a folder here and a row of ``TOKENIZERS``.

contract        what every tokenizer offers; the rest of the package asks for nothing else
editing         regions of an image as tokens; one image in the style of another
published_flags what flags of the published command lines mean for each family
vfmtok/         region tokens on a frozen vision foundation model (arXiv 2507.08441)
hita/           holistic and patch tokens with two codebooks (arXiv 2507.02358)
vfm_vae/        a VAE, or several codebooks, on a frozen vision model (arXiv 2510.18457)
vfmae/          continuous region latents on a frozen vision foundation model (arXiv 2605.18390)
vqgan/          LlamaGen's VQGAN, and VQGANs on frozen vision models
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from vfmtok import config as configuration
from vfmtok.config import Kinds, config_from_dict, read_tree
from vfmtok.encoders.config import EncoderConfig
from vfmtok.errors import ConfigError
from vfmtok.families import Family
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.tokenizers.hita.config import HitaConfig
from vfmtok.tokenizers.vfm_vae.config import VFMVAEConfig
from vfmtok.tokenizers.vfmae.config import VFMAEConfig
from vfmtok.tokenizers.vfmtok.config import VFMTokConfig
from vfmtok.tokenizers.vqgan.config import VQGANConfig
from vfmtok.trees import override_section

TOKENIZERS = {
    "vfmtok": Family(VFMTokConfig, "vfmtok.tokenizers.vfmtok.model:VFMTok"),
    "hita": Family(HitaConfig, "vfmtok.tokenizers.hita.model:Hita"),
    "vfm_vae": Family(VFMVAEConfig, "vfmtok.tokenizers.vfm_vae.model:VFMVAE"),
    "vfmae": Family(VFMAEConfig, "vfmtok.tokenizers.vfmae.model:VFMAE"),
    "vqgan": Family(VQGANConfig, "vfmtok.tokenizers.vqgan.model:VQGAN"),
}
AnyTokenizerConfig = Annotated[Any, Kinds(lambda: [family.config for family in TOKENIZERS.values()])]


def build_tokenizer(config: Any) -> Tokenizer:
    """The tokenizer of a configuration, of whatever kind. Raises ConfigError or WeightsError."""
    return TOKENIZERS[config.kind].model(config)


def build_to_fill(config: Any) -> Tokenizer:
    """The same, of which all weights but a frozen encoder's are about to be replaced: those that a trained encoder
    began with are not looked for. Raises ConfigError or WeightsError."""
    encoder = getattr(config, "encoder", None)
    if not isinstance(encoder, EncoderConfig) or encoder.frozen:
        return build_tokenizer(config)
    bare = dataclasses.replace(encoder, weights="random", weights_sha256=None)
    tokenizer = build_tokenizer(dataclasses.replace(config, encoder=bare))
    began = {"weights": encoder.weights, "weights_sha256": encoder.weights_sha256}
    tokenizer.encoder.config = dataclasses.replace(tokenizer.encoder.config, **began)
    return tokenizer


def load_config(path: str | Path, overrides: Iterable[str] = (), kind: Any = None) -> Any:
    """The tokenizer's configuration in a YAML file: a recipe's section ``tokenizer:``, or a file of that alone.

    Args:
        path: the file; keys it leaves out take their defaults, ``kind`` that of ``vfmtok``.
        overrides: ``"a.b=value"`` strings (the ``--set`` flag), with or without the prefix ``tokenizer.``.
        kind: the dataclass to fill with the whole file instead.

    Raises:
        ConfigError: the file can't be read, a key is unknown (the message names the closest match), a value has the
            wrong type or is not allowed.
    """
    if kind is not None:
        return configuration.load_config(path, overrides, kind=kind)
    return config_from_dict(tokenizer_tree(read_tree(path), overrides, str(path)), AnyTokenizerConfig, str(path))


def tokenizer_tree(tree: dict[str, Any], overrides: Iterable[str] = (), source: str = "configuration") -> dict:
    """The tokenizer's keys and values in those of a file, changed by ``overrides``. Raises ConfigError."""
    if "generator" in tree or "gpt" in tree:
        raise ConfigError(f"{source} is the recipe of a generator: it has no section tokenizer")
    section = tree.get("tokenizer", tree)
    if not isinstance(section, dict):
        raise ConfigError(f"{source}: tokenizer must be a section of keys and values, got {section!r}")
    return override_section(section, "tokenizer", overrides, next(iter(TOKENIZERS)))
