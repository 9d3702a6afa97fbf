"""Codes of chosen samples of a data set: those that validation measures, and those that statistics are measured on.

Shapes: N chosen samples, n of a block; a code is ids (K,) or latents (C,h,w).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.data.code_cache import Cache
from vfmtok.data.latent_cache import LatentCache
from vfmtok.data.latent_statistics import LatentStatistics, Per, statistics_of
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import BlockOrder, evenly_spaced
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import EvaluationCrop
from vfmtok.errors import ConfigError, DataError
from vfmtok.generators.counter_random import Draws
from vfmtok.training.code_source import CodeData, check_rows, drawn, encode
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.validation import read_samples

UNIGRAM_RECORDS = 20_000  # of the training cache, whose ids are counted for the baseline
STATISTICS_IMAGES = 10_000  # as LightningDiT measures latents
SEED = 0  # of what is drawn from posteriors here: the same for every run
_BLOCK = 32  # images encoded at a time


def chosen_codes(
    source: Cache | RecordDataset, data: CodeData, count: int, world: distributed.World, recipe: GeneratorRecipe
) -> tuple[Tensor, Tensor]:
    """Up to ``count`` evenly spaced samples of a cache (first view) or of images (evaluation crop).

    Every process gets all of them, and must ask; images are encoded by all together.

    Returns:
        code (N,...), labels (N,) int64, on the CPU.

    Raises:
        DataError: there are none, too many are bad, or they are none that the generator has.
    """
    chosen = evenly_spaced(count, len(source))
    with distributed.together():
        if not len(source):
            raise DataError(f"{source.path} holds no samples")
        if isinstance(source, Cache):
            stored = torch.stack([source[index, 0][0] for index in chosen.tolist()])
            labels = source.labels[torch.from_numpy(chosen)]
            check_rows(stored, labels, recipe.generator, source.path)
            return drawn(stored, source.code, Draws(SEED, torch.from_numpy(chosen))), labels
        share = chosen[world.rank :: world.size]
        crop = EvaluationCrop(data.tokenizer.config.image_size)
        images, labels = read_samples(source, crop, share, recipe.data.num_workers)
        check_rows(None, labels, recipe.generator, source.path)
    draws = Draws(SEED, torch.from_numpy(share))
    code = encode(data.tokenizer, images, _BLOCK, recipe.run.precision, draws).cpu()
    all_code = torch.empty(len(chosen), *code.shape[1:], dtype=code.dtype)
    all_labels = torch.empty(len(chosen), dtype=torch.int64)
    for rank, (part, part_labels) in enumerate(distributed.gather((code, labels))):
        all_code[rank :: world.size], all_labels[rank :: world.size] = part, part_labels
    return all_code, all_labels


def chosen_images(
    source: RecordDataset, data: CodeData, count: int, world: distributed.World, recipe: GeneratorRecipe
) -> Tensor:
    """The images (N,3,S,S) uint8, on the CPU, of the samples that ``chosen_codes`` takes: in every process all of them,
    and all must ask. Raises DataError."""
    chosen = evenly_spaced(count, len(source))
    with distributed.together():
        crop = EvaluationCrop(data.tokenizer.config.image_size)
        images, _ = read_samples(source, crop, chosen[world.rank :: world.size], recipe.data.num_workers)
    everyone = torch.empty(len(chosen), *images.shape[1:], dtype=images.dtype)
    for rank, part in enumerate(distributed.gather(images)):
        everyone[rank :: world.size] = part
    return everyone


def measured_statistics(
    data: CodeData,
    recipe: GeneratorRecipe,
    world: distributed.World,
    count: int = STATISTICS_IMAGES,
    per: Per = "channel",
) -> LatentStatistics:
    """Mean and standard deviation of the training data's latents, in the tokenizer's own units.

    A cache brings its own, over all its rows. Of images the evaluation crops of ``count``, evenly spaced, are encoded
    here by all processes together, which must all call it; memory is flat.

    Raises:
        DataError: too many images are bad, or the latents can't be normalised.
        ConfigError: the training data are ids; or a cache has statistics per channel and not, as wanted, per position.
    """
    if data.cache is not None:
        if not isinstance(data.cache, LatentCache):
            raise ConfigError(f"the {data.cache} holds ids: they have no mean and standard deviation")
        statistics = data.cache.statistics
        if per == "channel":
            return statistics.per_channel() if statistics.per == "position" else statistics
        if statistics.per != per:
            raise ConfigError(
                f"the statistics of the {data.cache} are per channel, and the generator wants them per position: run "
                "the command that made the cache again, with --stats-per position"
            )
        return statistics
    return statistics_of(_encoded(data, recipe, world, count), data.tokenizer.code.shape, per)


def _encoded(data: CodeData, recipe: GeneratorRecipe, world: distributed.World, count: int) -> Iterator[Tensor]:
    """Latents (n,C,h,w) of this process's share of the chosen images."""
    share = evenly_spaced(count, len(data.records))[world.rank :: world.size]
    blocks = [share[start : start + _BLOCK] for start in range(0, len(share), _BLOCK)]
    crop = EvaluationCrop(data.tokenizer.config.image_size)
    loader = ImageLoader(data.records, crop, BlockOrder(blocks), num_workers=recipe.data.num_workers)
    with contextlib.closing(loader):
        for rows, batch in zip(blocks, loader, strict=True):
            draws = Draws(SEED, torch.from_numpy(rows))
            yield encode(data.tokenizer, batch.images, _BLOCK, recipe.run.precision, draws)
