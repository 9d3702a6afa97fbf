"""What a training run of a generator is. The defaults are the published GPT-B's."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vfmtok.config import require, require_not_negative, require_positive
from vfmtok.data.shards import ShardOptions
from vfmtok.data.training_crop import Crop
from vfmtok.errors import ConfigError
from vfmtok.generators import AnyGeneratorConfig
from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.training.recipe import EMAConfig, OptimizerConfig, RunConfig


@dataclass(frozen=True)
class TokenDataConfig:
    """Where tokens come from: a cache, or images that the frozen tokenizer encodes at every step."""

    code_path: str | None = None  # a token cache made by `vfmtok codes`
    val_code_path: str | None = None  # held-out; None: beside it, with "val" for "train" in its name, if any
    path: str | None = None  # instead of a cache: a folder made by `vfmtok prepare`, or one LMDB
    val_path: str | None = None  # held-out images; with ``path`` None takes the folder's own val_lmdb
    vq_ckpt: str | None = None  # the tokenizer: a run's folder, a checkpoint, released weights or their repository
    vq_config: str | None = None  # its configuration, for weights that do not bring their own
    crop: Crop = "center"  # of images; center with flip is what a cache has by default
    flip: bool = True
    num_workers: int = 4  # processes that read and decode images, per training process
    min_size: int | None = None  # of shards: images with a shorter short side (px) are left out
    image_key: str | None = None  # of shards: the member that is the image, where several could be
    label_key: str | None = None  # of shards: the member or .json key that is the label

    def __post_init__(self):
        if self.path is not None and self.code_path is not None:
            raise ConfigError("give data.code_path (--code-path) or data.path (--anno-file), not both")
        if (self.path is not None or self.val_path is not None) and self.vq_ckpt is None:
            raise ConfigError("images (--anno-file, --val-path) need the tokenizer that encodes them: give --vq-ckpt")
        require_not_negative(self, "data", "num_workers")

    @property
    def shards(self) -> ShardOptions:
        return ShardOptions(self.min_size, self.image_key, self.label_key)


@dataclass(frozen=True)
class TokenOptimizerConfig(OptimizerConfig):
    """The optimizer of a generator. Its family says which parameters have weight decay (``Generator.decayed``)."""

    epochs: float = 300
    warmup_epochs: float = 0
    lr_batch: int | None = 256  # ``lr`` is for a batch of this size and grows with the global batch; None: as it is

    def __post_init__(self):
        super().__post_init__()
        require(self.lr_batch is None or self.lr_batch > 0, "optimizer.lr_batch", "must be positive", self.lr_batch)

    def scaled_to(self, global_batch: int) -> "TokenOptimizerConfig":
        """With the learning rates of this batch, whatever ``lr_batch`` was."""
        if self.lr_batch is None:
            return self
        factor = global_batch / self.lr_batch
        rates = {name: getattr(self, name) * factor for name in ("lr", "warmup_lr", "final_lr")}
        return dataclasses.replace(self, lr_batch=None, **rates)


# Version 0.1 had these beside ``every``; at these values, or with cfg_scale at any, they change nothing.
SAMPLING_OF_0_1 = {
    "cfg_scale": None, "cfg_schedule": "constant", "cfg_power": 1.0, "top_k": 0, "top_p": 1.0, "temperature": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class PicturesConfig:
    """Images of fixed classes and seeds, drawn now and then where a tokenizer is given (data.vq_ckpt)."""

    every: int = 5000  # steps; 0 draws none
    classes: int = 8  # evenly spaced; one row each
    per_class: int = 4
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=lambda: {"cfg_scale": 2.0})  # settings of the generator's family

    def __post_init__(self):
        require_not_negative(self, "pictures", "every")
        require_positive(self, "pictures", "classes", "per_class")
        require(0 <= self.seed < 2**64, "pictures.seed", "must be in [0,2^64)", self.seed)

    @classmethod
    def upgraded(cls, tree: dict) -> dict:
        """The settings lay beside the others in version 0.1, and may still be written there."""
        old = {name: tree.pop(name) for name in SAMPLING_OF_0_1 if name in tree}
        given = tree.get("sampling", cls().sampling)
        if old and isinstance(given, Mapping):
            changed = {name: value for name, value in old.items() if name in given or value != SAMPLING_OF_0_1[name]}
            tree["sampling"] = {**given, **changed}
        return tree


@dataclass(frozen=True)
class GeneratorRecipe:
    """Everything that ``train_c2i.py`` needs to know."""

    generator: AnyGeneratorConfig = field(default_factory=GPTConfig)
    data: TokenDataConfig = field(default_factory=TokenDataConfig)
    optimizer: TokenOptimizerConfig = field(default_factory=TokenOptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    run: RunConfig = field(default_factory=RunConfig)
    train: tuple[str, ...] = ()  # parts of the generator that learn, such as [output]; without any all do
    parallel: Literal["ddp", "fsdp"] = "ddp"  # fsdp: weights and optimizer spread over the processes (2B, 3B, 7B)

    @classmethod
    def upgraded(cls, tree: dict) -> dict:
        """Version 0.1 called the section ``gpt``."""
        if "gpt" in tree:
            old, new = tree.pop("gpt"), tree.get("generator", {})
            tree["generator"] = {**old, **new} if isinstance(old, Mapping) and isinstance(new, Mapping) else old
        return tree
