"""Where the codes that a generator trains on come from: a cache, or images that the frozen tokenizer encodes.

Both give the same kind of batch, in an order that is a function of (seed, samples seen) alone.

Shapes: B this process's batch, N samples; a code is ids (B,K) int64 or latents (B,C,h,w).
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.code import Code, Ids, check_fits
from vfmtok.data.code_cache import Cache, check_tokenizer
from vfmtok.data.dataset_folder import open_for_training, open_held_out
from vfmtok.data.latent_cache import open_cache
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import SampleOrder
from vfmtok.data.records import RecordDataset
from vfmtok.data.training_crop import training_crop
from vfmtok.data.transforms import to_unit_range
from vfmtok.errors import ConfigError, DataError
from vfmtok.generators.counter_random import Draws
from vfmtok.layers.precision import autocast
from vfmtok.pretrained.loading import load_tokenizer
from vfmtok.tokenizers.contract import Tokenizer, code_of
from vfmtok.training.generator_recipe import GeneratorRecipe, TokenDataConfig
from vfmtok.weights.hashing import tokenizer_hash


@dataclass
class CodeBatch:
    """One step's samples of one process."""

    code: Tensor  # (B,...)
    labels: Tensor  # (B,) int64
    positions: Tensor  # (B,) int64: of the samples in the run's endless sequence, by which they draw random numbers
    samples_seen: int  # by all processes, once this step is done
    images: Tensor | None = None  # (B,3,S,S) uint8 on the CPU, where the code was made of them here


@dataclass
class CodeData:
    """What a run reads. Exactly one of ``cache`` and ``records`` is there; so it is with the held-out two, or neither.

    Attributes:
        classes: names by label, or None where the data do not say.
        tokenizer_hash: of the tokenizer that made, or makes, the codes.
        tokenizer: in eval mode on the device, if the recipe names one.
    """

    cache: Cache | None
    records: RecordDataset | None
    held_out_cache: Cache | None
    held_out_records: RecordDataset | None
    tokenizer: Tokenizer | None
    tokenizer_hash: str
    classes: list[str] | None

    def __len__(self) -> int:
        """Samples of an epoch: images, or sequences where a cache has several of each."""
        return self.cache.num_sequences if self.cache is not None else len(self.records)

    @property
    def fingerprint(self) -> str:
        """Of the images, whether they come encoded or not."""
        return self.cache.metadata["dataset_fingerprint"] if self.cache is not None else self.records.fingerprint


def open_codes(recipe: GeneratorRecipe, world: distributed.World) -> CodeData:
    """Open what the recipe names.

    Raises:
        DataError: it is not there, or was made by another tokenizer.
        ConfigError: the generator learns other codes or classes.
    """
    data = recipe.data
    tokenizer, cache, records, held_records = None, None, None, None
    if data.vq_ckpt:
        tokenizer = load_tokenizer(data.vq_ckpt, data.vq_config).to(world.device)
    if data.code_path:
        cache = open_cache(Path(data.code_path).expanduser())
        classes, made_by = cache.classes, cache.metadata["tokenizer_hash"]
        if tokenizer is not None:
            check_tokenizer(cache, tokenizer_hash(tokenizer))
    elif data.path and tokenizer is not None:
        records, held_records = open_for_training(data.path, data.val_path, data.shards)
        classes, made_by = records.classes, tokenizer_hash(tokenizer)
    else:
        raise ConfigError("no training data: give data.code_path, or data.path with data.vq_ckpt")
    held_cache = _held_out_cache(data)
    if held_cache is not None:
        held_records = None
        check_tokenizer(held_cache, made_by)
        _check_classes(held_cache.classes, classes, held_cache.path)
    elif cache is not None and data.val_path is not None:
        held_records = open_held_out(data.val_path, data.shards)
    if held_records is not None:
        _check_classes(held_records.classes, classes, held_records.path)
    found = CodeData(cache, records, held_cache, held_records, tokenizer, made_by, classes)
    _check_sizes(recipe.generator, found)
    return found


def _held_out_cache(data: TokenDataConfig) -> Cache | None:
    if data.val_code_path is not None:
        return open_cache(Path(data.val_code_path).expanduser())
    if data.code_path is None or data.val_path is not None:
        return None
    path = Path(data.code_path).expanduser()
    beside = path.with_name(re.sub("train", "val", path.name))
    return open_cache(beside) if beside != path and (beside / "cache.json").is_file() else None


def _check_classes(held_out: list[str] | None, train: list[str] | None, path: Path) -> None:
    if held_out != train:
        raise DataError(f"the held-out data {path} have other classes than the training data")


def _check_sizes(config: Any, data: CodeData) -> None:
    """The generator fits the codes and labels, or ConfigError with one line."""
    if data.cache is not None:
        check_fits(config.code, data.cache.code, f"the {data.cache}")
        largest = int(data.cache.labels.max())
    else:
        check_fits(config.code, data.tokenizer.code, "the tokenizer")
        largest = -1  # images tell their labels as they are read
    classes = len(data.classes) if data.classes is not None else None
    if classes is not None and config.num_classes != classes:
        raise ConfigError(
            f"generator.num_classes (--num-classes) is {config.num_classes}, the data have {classes} classes"
        )
    if largest >= config.num_classes:
        raise ConfigError(
            f"generator.num_classes (--num-classes) is {config.num_classes}, the data have label {largest}"
        )


def check_rows(code: Tensor | None, labels: Tensor, config: Any, path: Path) -> None:
    """The code (N,...) and labels (N,), on the CPU, are ones that the generator has; raises DataError.

    Looked at before they are used: on a GPU an index out of range ends the process without a word about the data.
    """
    if len(labels) and not 0 <= labels.min() <= labels.max() < config.num_classes:
        found = f"labels {labels.min()} to {labels.max()}"
        raise DataError(f"{path} has {found}, the generator {config.num_classes} classes (--num-classes)")
    if code is None or not code.numel():
        return
    if not isinstance(config.code, Ids):
        wrong = ~code.isfinite().flatten(1).all(1)
        if wrong.any():
            raise DataError(f"{path} is damaged: a latent of label {labels[wrong][0]} is not finite")
        return
    for segment, part in zip(config.code.segments, config.code.slices(), strict=True):
        largest = code[:, part].max()
        if largest >= segment.size:
            raise DataError(f"{path} is damaged: it holds the id {largest}, and there are {segment.size} codes")


# --------------------------------------------------------------------------------------
# Training batches
# --------------------------------------------------------------------------------------


class CachedCodes:
    """Endless batches from a cache. Like ``EncodedCodes`` it knows how long the training waited for it.

    Args:
        device: where latents are drawn, if the cache has their mean and standard deviation.
    """

    bad_records: tuple = ()  # `vfmtok codes` has dealt with them

    def __init__(
        self, cache: Cache, order: SampleOrder, samples_seen: int, config: Any, device: torch.device | str = "cpu"
    ):
        self.cache, self.order, self.config, self.device = cache, order, config, device
        self._steps = order.batches(samples_seen)
        self.reset_timing()

    def __next__(self) -> CodeBatch:
        start = time.perf_counter()
        step = next(self._steps)
        stored, labels = self.cache.batch(step.indices, self.order.seed, step.epochs)
        check_rows(stored, labels, self.config, self.cache.path)
        positions = _positions(self.order, step.samples_seen)
        code = drawn(stored, self.cache.code, Draws(self.order.seed % 2**64, positions), self.device)
        self._waited += time.perf_counter() - start
        return CodeBatch(code, labels, positions, step.samples_seen)

    def reset_timing(self) -> None:
        self._waited, self._since = 0.0, time.perf_counter()

    @property
    def wait_share(self) -> float:
        return self._waited / max(time.perf_counter() - self._since, 1e-9)

    def close(self) -> None:
        """Nothing is to be closed."""


class EncodedCodes:
    """Endless batches of images, encoded on the device.

    Args:
        seed: of what the encoder draws.
    """

    def __init__(
        self,
        loader: ImageLoader,
        path: Path,
        tokenizer: Tokenizer,
        micro_batch: int,
        precision: str,
        config: Any,
        seed: int,
    ):
        self.loader, self.path, self.tokenizer, self.config, self.seed = loader, path, tokenizer, config, seed
        self.micro_batch, self.precision = micro_batch, precision
        self.reset_timing, self.close = loader.reset_timing, loader.close

    def __next__(self) -> CodeBatch:
        batch = next(self.loader)
        check_rows(None, batch.labels, self.config, self.path)
        positions = _positions(self.loader.order, batch.samples_seen)
        code = encode(self.tokenizer, batch.images, self.micro_batch, self.precision, Draws(self.seed, positions))
        return CodeBatch(code, batch.labels, positions, batch.samples_seen, batch.images)

    @property
    def wait_share(self) -> float:
        return self.loader.wait_share

    @property
    def bad_records(self) -> dict:
        return self.loader.bad_records


def drawn(stored: Tensor, code: Code, draws: Draws, device: torch.device | str = "cpu") -> Tensor:
    """What a cache gives (B,...) -> the code: where it is mean and standard deviation (B,2,C,h,w), latents (B,C,h,w)
    drawn from them on ``device``, others in every epoch."""
    if stored.shape[1:] == tuple(code.shape):
        return stored
    mean, std = stored.to(device).unbind(1)
    draws = Draws(draws.seed, draws.samples.to(device))
    return mean + std * draws.normal("posterior", mean[0].numel()).view_as(mean)


def _positions(order: SampleOrder, samples_seen: int) -> Tensor:
    return torch.from_numpy(order.positions(samples_seen))


def training_codes(
    data: CodeData, recipe: GeneratorRecipe, world: distributed.World, samples_seen: int, micro_batch: int
) -> CachedCodes | EncodedCodes:
    """The batches of this process from ``samples_seen`` on."""
    run = recipe.run
    order = SampleOrder(
        len(data),
        run.global_batch,
        run.seed,
        world_size=world.size,
        rank=world.rank,
        shard_sizes=None if data.records is None else data.records.shard_sizes,
    )
    if data.cache is not None:
        return CachedCodes(data.cache, order, samples_seen, recipe.generator, world.device)
    crop = training_crop(recipe.data.crop, data.tokenizer.config.image_size, run.seed, recipe.data.flip)
    loader = ImageLoader(data.records, crop, order, samples_seen=samples_seen, num_workers=recipe.data.num_workers)
    return EncodedCodes(
        loader, data.records.path, data.tokenizer, micro_batch, run.precision, recipe.generator, run.seed % 2**64
    )


@torch.no_grad()
def encode(
    tokenizer: Tokenizer, images: Tensor, micro_batch: int, precision: str, draws: Draws | None = None
) -> Tensor:
    """uint8 (B,3,S,S) -> their code on the tokenizer's device. On CPUs in float32, as `vfmtok codes` does.

    ``draws`` is for a tokenizer whose code is a matter of chance; without it the code is the likeliest one.
    """
    device, code = tokenizer.device, tokenizer.code
    precision = "none" if device.type == "cpu" else precision
    draws, parts = draws if getattr(tokenizer, "encode_draws", False) else None, []
    for start in range(0, len(images), micro_batch):
        rows = slice(start, start + micro_batch)
        pixels = to_unit_range(images[rows].to(device, non_blocking=True))
        chance = {} if draws is None else {"draws": Draws(draws.seed, draws.samples[rows].to(device))}
        with autocast(precision, device):
            parts.append(code_of(tokenizer.encode(pixels, **chance), code))
    kind = torch.int64 if isinstance(code, Ids) else torch.float32
    return torch.cat(parts) if parts else torch.empty(0, *code.shape, dtype=kind, device=device)
