"""Where a generator's training tokens come from: a cache, or images that the frozen tokenizer encodes on the way.

Both give the same kind of batch, in an order that is a function of (seed, samples seen) alone.

Shapes: B this process's batch, K tokens, N samples.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vfmtok import distributed
from vfmtok.code import check_fits
from vfmtok.data.code_cache import CodeCache, check_tokenizer
from vfmtok.data.dataset_folder import open_for_training, open_split
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import SampleOrder, evenly_spaced
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import EvaluationCrop, RandomCrop, to_unit_range
from vfmtok.errors import ConfigError, DataError
from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.layers.precision import autocast
from vfmtok.pretrained.loading import load_tokenizer
from vfmtok.training.generator_recipe import GeneratorRecipe, TokenDataConfig
from vfmtok.training.validation import read_samples
from vfmtok.weights.hashing import tokenizer_hash

UNIGRAM_RECORDS = 20_000  # of the training cache, whose ids are counted for the baseline


@dataclass
class TokenBatch:
    """One step's samples of one process."""

    ids: Tensor  # (B,K) int64
    labels: Tensor  # (B,) int64
    samples_seen: int  # by all processes, once this step is done


@dataclass
class TokenData:
    """What a run reads. Exactly one of ``cache`` and ``records`` is there; so it is with the held-out two, or neither.

    Attributes:
        classes: names by label, or None where the data do not say.
        tokenizer_hash: of the tokenizer that made, or makes, the ids.
        tokenizer: in eval mode on the device, if the recipe names one.
    """

    cache: CodeCache | None
    records: RecordDataset | None
    held_out_cache: CodeCache | None
    held_out_records: RecordDataset | None
    tokenizer: nn.Module | None
    tokenizer_hash: str
    classes: list[str] | None

    def __len__(self) -> int:
        return len(self.cache if self.cache is not None else self.records)

    @property
    def fingerprint(self) -> str:
        """Of the images, whether they come encoded or not."""
        return self.cache.metadata["dataset_fingerprint"] if self.cache is not None else self.records.fingerprint


def open_tokens(recipe: GeneratorRecipe, world: distributed.World) -> TokenData:
    """Open what the recipe names.

    Raises:
        DataError: it is not there, or was made by another tokenizer.
        ConfigError: the GPT is of another size.
    """
    data = recipe.data
    tokenizer, cache, records, held_records = None, None, None, None
    if data.vq_ckpt:
        tokenizer = load_tokenizer(data.vq_ckpt, data.vq_config).to(world.device)
    val_path = None if data.val_path is None else Path(data.val_path).expanduser()
    if data.code_path:
        cache = CodeCache(Path(data.code_path).expanduser())
        classes, made_by = cache.classes, cache.metadata["tokenizer_hash"]
        if tokenizer is not None:
            check_tokenizer(cache, tokenizer_hash(tokenizer))
    elif data.path and tokenizer is not None:
        records, held_records = open_for_training(Path(data.path).expanduser(), val_path)
        classes, made_by = records.classes, tokenizer_hash(tokenizer)
    else:
        raise ConfigError("no training data: give data.code_path, or data.path with data.vq_ckpt")
    held_cache = _held_out_cache(data)
    if held_cache is not None:
        held_records = None
        check_tokenizer(held_cache, made_by)
        _check_classes(held_cache.classes, classes, held_cache.path)
    elif cache is not None and val_path is not None:
        held_records = open_split(val_path, "val")
    if held_records is not None:
        _check_classes(held_records.classes, classes, held_records.path)
    found = TokenData(cache, records, held_cache, held_records, tokenizer, made_by, classes)
    _check_sizes(recipe.generator, found)
    return found


def _held_out_cache(data: TokenDataConfig) -> CodeCache | None:
    if data.val_code_path is not None:
        return CodeCache(Path(data.val_code_path).expanduser())
    if data.code_path is None or data.val_path is not None:
        return None
    path = Path(data.code_path).expanduser()
    beside = path.with_name(re.sub("train", "val", path.name))
    return CodeCache(beside) if beside != path and (beside / "cache.json").is_file() else None


def _check_classes(held_out: list[str] | None, train: list[str] | None, path: Path) -> None:
    if held_out != train:
        raise DataError(f"the held-out data {path} have other classes than the training data")


def _check_sizes(config: GPTConfig, data: TokenData) -> None:
    """The generator fits the codes and labels, or ConfigError with one line."""
    if data.cache is not None:
        check_fits(config.code, data.cache.code, f"the token cache {data.cache.path}")
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


def check_rows(ids: Tensor | None, labels: Tensor, config: GPTConfig, path: Path) -> None:
    """ids (N,K) and labels (N,), on the CPU, are ones that the GPT has; raises DataError.

    Looked at before they are used: on a GPU an index out of range ends the process without a word about the data.
    """
    if len(labels) and not 0 <= labels.min() <= labels.max() < config.num_classes:
        found = f"labels {labels.min()} to {labels.max()}"
        raise DataError(f"{path} has {found}, the generator {config.num_classes} classes (--num-classes)")
    if ids is not None and ids.numel() and ids.max() >= config.vocab_size:
        raise DataError(f"{path} is damaged: it holds the id {ids.max()}, and there are {config.vocab_size} codes")


# --------------------------------------------------------------------------------------
# Training batches
# --------------------------------------------------------------------------------------


class CachedTokens:
    """Endless batches from a cache. Like ``EncodedTokens`` it tells how long the training waited for it."""

    bad_records: tuple = ()  # `vfmtok codes` has dealt with them

    def __init__(self, cache: CodeCache, order: SampleOrder, samples_seen: int, config: GPTConfig):
        self.cache, self.seed, self.config = cache, order.seed, config
        self._steps = order.batches(samples_seen)
        self.reset_timing()

    def __next__(self) -> TokenBatch:
        start = time.perf_counter()
        step = next(self._steps)
        ids, labels = self.cache.batch(step.indices, self.seed, step.epochs)
        check_rows(ids, labels, self.config, self.cache.path)
        self._waited += time.perf_counter() - start
        return TokenBatch(ids, labels, step.samples_seen)

    def reset_timing(self) -> None:
        self._waited, self._since = 0.0, time.perf_counter()

    @property
    def wait_share(self) -> float:
        return self._waited / max(time.perf_counter() - self._since, 1e-9)

    def close(self) -> None:
        """Nothing is to be closed."""


class EncodedTokens:
    """Endless batches of images, encoded on the device."""

    def __init__(
        self, loader: ImageLoader, path: Path, tokenizer: nn.Module, micro_batch: int, precision: str, config: GPTConfig
    ):
        self.loader, self.path, self.tokenizer, self.config = loader, path, tokenizer, config
        self.micro_batch, self.precision = micro_batch, precision
        self.reset_timing, self.close = loader.reset_timing, loader.close

    def __next__(self) -> TokenBatch:
        batch = next(self.loader)
        check_rows(None, batch.labels, self.config, self.path)
        ids = encode(self.tokenizer, batch.images, self.micro_batch, self.precision)
        return TokenBatch(ids, batch.labels, batch.samples_seen)

    @property
    def wait_share(self) -> float:
        return self.loader.wait_share

    @property
    def bad_records(self) -> dict:
        return self.loader.bad_records


def training_tokens(
    data: TokenData, recipe: GeneratorRecipe, world: distributed.World, samples_seen: int, micro_batch: int
) -> CachedTokens | EncodedTokens:
    """The batches of this process from ``samples_seen`` on."""
    run = recipe.run
    order = SampleOrder(len(data), run.global_batch, run.seed, world_size=world.size, rank=world.rank)
    if data.cache is not None:
        return CachedTokens(data.cache, order, samples_seen, recipe.generator)
    crop = RandomCrop(
        data.tokenizer.config.image_size, run.seed, recipe.data.flip, centred=recipe.data.crop == "center"
    )
    loader = ImageLoader(data.records, crop, order, samples_seen=samples_seen, num_workers=recipe.data.num_workers)
    return EncodedTokens(loader, data.records.path, data.tokenizer, micro_batch, run.precision, recipe.generator)


@torch.no_grad()
def encode(tokenizer: nn.Module, images: Tensor, micro_batch: int, precision: str) -> Tensor:
    """uint8 (B,3,S,S) -> ids (B,K) int64 on the tokenizer's device. On CPUs in float32, as `vfmtok codes` does."""
    device = tokenizer.device
    precision = "none" if device.type == "cpu" else precision
    ids = [torch.empty(0, tokenizer.code.num_tokens, dtype=torch.int64, device=device)]
    for part in images.split(micro_batch):
        with autocast(precision, device):
            ids.append(tokenizer.encode(to_unit_range(part.to(device, non_blocking=True))).ids)
    return torch.cat(ids)


# --------------------------------------------------------------------------------------
# Chosen samples
# --------------------------------------------------------------------------------------


def chosen_tokens(
    source: CodeCache | RecordDataset, data: TokenData, count: int, world: distributed.World, recipe: GeneratorRecipe
) -> tuple[Tensor, Tensor]:
    """Up to ``count`` evenly spaced samples of a cache (first view) or of images (evaluation crop).

    Every process gets all of them, and must ask; images are encoded by all together.

    Returns:
        ids (N,K), labels (N,), int64 on the CPU.

    Raises:
        DataError: there are none, too many are bad, or they are none that the GPT has.
    """
    chosen = evenly_spaced(count, len(source))
    with distributed.together():
        if not len(source):
            raise DataError(f"{source.path} holds no samples")
        if isinstance(source, CodeCache):
            ids = torch.stack([source[index, 0][0] for index in chosen.tolist()])
            labels = source.labels[torch.from_numpy(chosen)]
            check_rows(ids, labels, recipe.generator, source.path)
            return ids, labels
        share = chosen[world.rank :: world.size]
        crop = EvaluationCrop(data.tokenizer.config.image_size)
        images, labels = read_samples(source, crop, share, recipe.data.num_workers)
        check_rows(None, labels, recipe.generator, source.path)
    ids = encode(data.tokenizer, images, 32, recipe.run.precision).cpu()
    all_ids = torch.empty(len(chosen), ids.shape[1], dtype=torch.int64)
    all_labels = torch.empty(len(chosen), dtype=torch.int64)
    for rank, (part, part_labels) in enumerate(distributed.gather((ids, labels))):
        all_ids[rank :: world.size], all_labels[rank :: world.size] = part, part_labels
    return all_ids, all_labels
