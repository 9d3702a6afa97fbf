"""What a training run is: recipes, as typed configurations. The defaults are the published tokenizer's.

A recipe is read, checked, changed by flags and written back like any configuration (``vfmtok/config.py``). The losses'
sections are in ``loss_recipe.py``. The generator's recipe (``generator_recipe.py``) shares the sections ``EMAConfig``
and ``RunConfig``, and extends ``OptimizerConfig``.
"""

import dataclasses
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vfmtok.code import Latents
from vfmtok.config import require, require_not_negative, require_positive
from vfmtok.data.shards import ShardOptions
from vfmtok.data.training_crop import Crop
from vfmtok.encoders.config import EncoderConfig, require_encoder_weights
from vfmtok.errors import ConfigError
from vfmtok.quantizers import QUANTIZERS, CosineConfig
from vfmtok.tokenizers import AnyTokenizerConfig
from vfmtok.tokenizers.vfmtok.config import VFMTokConfig
from vfmtok.training.loss_recipe import (
    AdversarialConfig,
    EquivarianceConfig,
    LossConfig,
)


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are cropped."""

    path: str = ""  # a folder made by `vfmtok prepare`, one LMDB, or WebDataset shards (also a URL)
    val_path: str | None = None  # held-out images; None takes the folder's own val_lmdb, if it has one
    # random: the short side becomes size to size/0.8 px, then a square of it; zoom: a square of half the short side to
    # all of it becomes size px; center: the evaluation crop.
    crop: Crop = "random"
    flip: bool = True
    num_workers: int = 4  # processes that read and decode, per training process
    min_size: int | None = None  # of shards: images with a shorter short side (px) are left out
    image_key: str | None = None  # of shards: the member that is the image, where several could be
    label_key: str | None = None  # of shards: the member or .json key that is the label; "none": labels do not matter

    def __post_init__(self):
        require_not_negative(self, "data", "num_workers")

    @property
    def shards(self) -> ShardOptions:
        return ShardOptions(self.min_size, self.image_key, self.label_key)


@dataclass(frozen=True)
class CodebookConfig:
    """Care for the codebook of small data sets, where the published quantizer collapses. All off as published."""

    continuous_steps: int = 0  # first steps without quantization: the decoder sees the normalised latents
    kmeans: bool = False  # at their end the codebook becomes the k-means centres of real latents
    revive: bool = False  # codes without use in a whole window become latents of the current batch
    window: int = 65536  # tokens of each codebook over which usage is counted, at least

    def __post_init__(self):
        require_not_negative(self, "codebook", "continuous_steps")
        require_positive(self, "codebook", "window")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and how long and how fast it learns."""

    # muon: Muon for the hidden matrices, AdamW for the rest (training/muon.py)
    name: Literal["adamw", "adam", "muon"] = "adamw"
    lr: float = 1e-4
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0  # 0 does not clip
    epochs: float = 50
    steps: int | None = None  # the length of the run in steps, instead of ``epochs``
    warmup_epochs: float = 4
    warmup_steps: int | None = None  # instead of ``warmup_epochs``
    warmup_lr: float = 1e-7  # the rate the linear warm-up begins at
    decay: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up, down to ``final_lr``
    final_lr: float = 0.0
    decay_from: float = 0.0  # share of the run, from 0 to 1, at whose end linear begins to fall
    muon_lr_factor: float = 1.0  # the matrices learn at so many times ``lr``
    muon_momentum: float = 0.95

    def __post_init__(self):
        require_positive(self, "optimizer", "epochs")
        require_not_negative(
            self, "optimizer", "lr", "weight_decay", "max_grad_norm", "warmup_epochs", "warmup_lr", "final_lr"
        )
        require(self.steps is None or self.steps > 0, "optimizer.steps", "must be positive", self.steps)
        fits = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(fits, "optimizer.betas", "must be two numbers in [0,1)", self.betas)
        require(0 <= self.decay_from < 1, "optimizer.decay_from", "must be in [0,1)", self.decay_from)
        require_positive(self, "optimizer", "muon_lr_factor")
        momentum = self.muon_momentum
        require(0 <= momentum < 1, "optimizer.muon_momentum", "must be in [0,1)", momentum)
        for item in dataclasses.fields(OptimizerConfig):
            own = self.name == "muon" or getattr(self, item.name) == item.default
            named = f"optimizer.{item.name}"
            require(own or not item.name.startswith("muon_"), named, "belongs to optimizer.name muon", self.name)
        used = self.decay == "linear" or not self.decay_from
        require(used, "optimizer.decay_from", "belongs to optimizer.decay linear", self.decay_from)


@dataclass(frozen=True)
class EMAConfig:
    """The exponential moving average of the weights, which is what evaluation and generation use."""

    enabled: bool = True
    decay: float = 0.9999
    warmup: bool = False  # min(decay, (1 + step) / (10 + step)): a short run's average forgets its beginning
    half_life_images: int | None = None  # after which half of the average is new: a decay by images, not by steps
    ramp: float | None = None  # the half-life is at most this share of the images seen

    def __post_init__(self):
        require(0 <= self.decay < 1, "ema.decay", "must be in [0,1)", self.decay)
        half_life, ramp = self.half_life_images, self.ramp
        require(half_life is None or half_life > 0, "ema.half_life_images", "must be positive", half_life)
        fits = ramp is None or (half_life is not None and ramp > 0)
        require(fits, "ema.ramp", "must be positive and needs ema.half_life_images", ramp)
        require(half_life is None or not self.warmup, "ema.warmup", "is ema.ramp with ema.half_life_images", True)

    def decay_by_images(self, images_seen: int, batch: int) -> float | None:
        """Of a step of ``batch`` images before which the run had seen so many; None where it goes by steps."""
        if self.half_life_images is None:
            return None
        half_life = self.half_life_images if self.ramp is None else min(self.half_life_images, self.ramp * images_seen)
        return 0.5 ** (batch / half_life) if half_life else 0.0


@dataclass(frozen=True)
class RunConfig:
    """How the run is carried out. None of it changes what is learned, but for the seed and rounding."""

    results_dir: str = "results"
    start_from: str | None = None  # weights to begin with, all that fit: a run, a checkpoint, a file, a published name
    continue_from: str | None = None  # another run's folder or checkpoint to continue, if there is none here yet
    global_batch: int = 256  # samples of an optimizer step, over all processes and accumulation steps
    accumulation: int = 1  # forward and backward passes per step
    precision: Literal["auto", "bf16", "fp16", "none"] = "auto"  # auto: bf16 where the device computes it, else none
    seed: int = 0
    new_data: bool = False  # continue from a checkpoint though the training data are not those it was trained on
    compile: bool = False
    checkpoint_activations: bool = False  # compute activations again in the backward pass instead of keeping them
    tf32: bool = False  # let float32 products and convolutions round to TF32 on GPUs that have it
    log_every: int = 100  # steps
    save_every: int = 5000
    async_save: bool = False  # write checkpoints from a copy in host memory while the training goes on
    keep: int = 2  # newest checkpoints; the best one is kept besides
    validate_every: int = 5000
    validation_images: int = 1000  # held-out images of a validation, at most
    tensorboard: bool = True
    wandb: str | None = None  # the project to log to

    def __post_init__(self):
        names = ("global_batch", "accumulation", "log_every", "save_every", "keep", "validate_every")
        require_positive(self, "run", *names, "validation_images")
        if self.start_from is not None and self.continue_from is not None:
            raise ConfigError(
                "give run.start_from (weights alone) or run.continue_from (a checkpoint with its step), not both"
            )


@dataclass(frozen=True)
class TokenizerRecipe:
    """Everything that ``vq_train.py`` needs to know."""

    tokenizer: AnyTokenizerConfig = field(default_factory=lambda: VFMTokConfig(encoder=EncoderConfig(weights="auto")))
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    second_adversarial: AdversarialConfig | None = None  # of a second discriminator beside the first
    equivariance: EquivarianceConfig = field(default_factory=EquivarianceConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    run: RunConfig = field(default_factory=RunConfig)
    train: tuple[str, ...] = ()  # parts of the tokenizer that learn, such as [pixel_decoder]; without any all do

    def __post_init__(self):
        require_encoder_weights(self.tokenizer)
        require_encoder_weights(self.loss, "loss")
        encoder = getattr(self.tokenizer, "encoder", None)
        borrowed = self.loss.perceptual == "encoder" and self.loss.perceptual_encoder is None
        if borrowed and not getattr(encoder, "frozen", False):
            raise ConfigError(
                "loss.perceptual: 'encoder' needs encoder.frozen (a network that learns is no fixed measure), or a "
                "loss.perceptual_encoder of its own"
            )
        if isinstance(getattr(self.tokenizer, "code", None), Latents) and self.codebook != CodebookConfig():
            raise ConfigError(f"codebook: a tokenizer of kind '{self.tokenizer.kind}' has none: its code is continuous")
        if borrowed and self.equivariance.enabled:
            raise ConfigError(
                "loss.perceptual: 'encoder' compares with features of the image as the tokenizer saw it, which "
                "equivariance.enabled transforms: name a loss.perceptual_encoder"
            )
        sections = [getattr(self.tokenizer, item.name) for item in dataclasses.fields(self.tokenizer)]
        quantizers = [section for section in sections if isinstance(section, tuple(QUANTIZERS))]
        learned = [isinstance(quantizer, CosineConfig) for quantizer in quantizers]
        if (self.codebook.kmeans or self.codebook.revive) and not (learned and all(learned)):
            raise ConfigError(
                "codebook.kmeans and codebook.revive need quantizer.kind cosine, whose codebook is learned"
            )
        if self.codebook.kmeans and not self.codebook.continuous_steps:
            raise ConfigError("codebook.kmeans needs codebook.continuous_steps, at whose end it runs")

    @classmethod
    def as_written(cls, tree: dict) -> dict:
        """Version 0.1 took "none" for the word that random weights were meant."""
        tokenizer = tree.get("tokenizer", {})
        encoder = tokenizer.get("encoder", {})
        if encoder.get("weights") != "none":
            return tree
        return {**tree, "tokenizer": {**tokenizer, "encoder": {**encoder, "weights": "random"}}}


@dataclass(frozen=True)
class Plan:
    """What follows from a recipe for this data set and these processes."""

    steps: int
    warmup_steps: int
    rank_batch: int  # samples of a step per process
    micro_batch: int  # of a forward pass

    @staticmethod
    def of(optimizer: OptimizerConfig, run: RunConfig, num_samples: int, world_size: int) -> "Plan":
        """Raises ConfigError if the global batch does not divide."""
        shares = world_size * run.accumulation
        if run.global_batch % shares:
            raise ConfigError(
                f"run.global_batch {run.global_batch} is not divisible by {world_size} processes x "
                f"{run.accumulation} accumulation steps"
            )
        per_epoch = num_samples / run.global_batch
        steps = optimizer.steps or math.ceil(optimizer.epochs * per_epoch)
        warmup = optimizer.warmup_steps
        if warmup is None:
            warmup = round(optimizer.warmup_epochs * per_epoch)
        rank_batch = run.global_batch // world_size
        return Plan(steps, warmup, rank_batch, rank_batch // run.accumulation)


def begun_at(recipe: Any, weights: str | Path | None, finetune: bool) -> Any:
    """The recipe with what the flags ``--vq-ckpt`` or ``--gpt-ckpt`` and ``--finetune`` mean: a checkpoint to continue
    from, or with ``finetune`` weights to start from."""
    if weights is None:
        return recipe
    fields = {"start_from": None, "continue_from": None, "start_from" if finetune else "continue_from": str(weights)}
    return replace(recipe, run=replace(recipe.run, **fields))


def changed_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Keys ("a.b") whose values differ between two plain configurations: key -> (old, new)."""
    changes = {}
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changes |= changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            changes[f"{prefix}{key}"] = (before, after)
    return changes
