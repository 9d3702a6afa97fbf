"""A latent cache as LightningDiT's and REG's programs read it; published_latents.py says how those folders look.

A function of ``WRITERS`` writes a format. What was written before an interruption is written again, the same.

Shapes: N records, b of a block, M 1 or 2, (C,h,w) a latent.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from vfmtok.data.latent_cache import LatentCache
from vfmtok.data.published_latents import STATISTICS, VIEWS
from vfmtok.errors import DataError
from vfmtok.files import replace_file, write_json

SHARD = 10_000  # images of a shard of LightningDiT's


def write_lightningdit(cache: LatentCache, out: Path, progress: Callable[[int], None] = lambda done: None) -> None:
    """Shards of ``latents``, ``latents_flip`` (where the cache has mirror images), ``labels``; latents_stats.pt.

    ``progress`` hears how many images were written. Raises DataError: the cache has moments, or other views.
    """
    if cache.has_moments:
        raise DataError(
            f"the {cache} has moments, and LightningDiT's files hold one latent of each: make a cache with "
            "--posterior sample"
        )
    views = _views(cache)
    for shard, rows in enumerate(_blocks(len(cache), SHARD)):
        stored = torch.from_numpy(cache.rows(rows).astype(np.float32))  # (b,V,1,C,h,w)
        tensors = {name: stored[:, view, 0].contiguous() for name, view in views.items()}
        tensors["labels"] = cache.labels[torch.from_numpy(rows)]
        content = safetensors.torch.save(tensors)
        replace_file(out / f"latents_rank00_shard{shard:03d}.safetensors", lambda file, c=content: file.write(c))
        progress(len(rows))
    _write_statistics(cache, out)


def write_reg(cache: LatentCache, out: Path, progress: Callable[[int], None] = lambda done: None) -> None:
    """vae_latents/LABEL/LABEL_NUMBER.npy of mean and standard deviation (2C,h,w), dataset.json; latents_stats.pt.

    Of the first view alone, as there. The deviation of a tokenizer without posterior is 0. Raises DataError: the cache
    has samples or means of a posterior.
    """
    if cache.metadata["posterior"] in ("sample", "mean"):
        raise DataError(
            f"the {cache} has one latent of each, and REG's files hold mean and standard deviation: make a cache with "
            "--posterior moments"
        )
    _views(cache)
    folder, names = out / "vae_latents", names_of(cache)
    for rows in _blocks(len(cache), 256):
        stored = cache.rows(rows)[:, 0].astype(np.float32)  # (b,M,C,h,w)
        if not cache.has_moments:
            stored = np.concatenate([stored, np.zeros_like(stored)], 1)
        for row, moments in zip(rows.tolist(), stored, strict=True):
            file = folder / f"{names[row]}.npy"
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"cannot write {file.parent}: {error.strerror}") from None
            replace_file(file, lambda opened, m=moments: np.save(opened, m.reshape(-1, *m.shape[2:])))
        progress(len(rows))
    listed = [[f"{name}.npy", label] for name, label in zip(names, cache.labels.tolist(), strict=True)]
    write_json(folder / "dataset.json", {"labels": listed})
    _write_statistics(cache, out)


WRITERS: Mapping[str, Callable[..., None]] = MappingProxyType({"lightningdit": write_lightningdit, "reg": write_reg})


def names_of(cache: LatentCache) -> list[str]:
    """Of REG's files, without suffix: the folder is what the name has before its first "_", as there."""
    return [f"{label:05d}/{label:05d}_{row:08d}" for row, label in enumerate(cache.labels.tolist())]


def _views(cache: LatentCache) -> dict[str, int]:
    """LightningDiT's names of the views, and which ones they are. Raises DataError."""
    names = cache.metadata["views"]
    if tuple(names) not in (VIEWS, VIEWS[:1]):
        raise DataError(f"the {cache} has the views {', '.join(names[:3])}, ...: wanted are --views center or flip")
    return dict(zip(("latents", "latents_flip"), range(len(names)), strict=False))


def _blocks(count: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


def _write_statistics(cache: LatentCache, out: Path) -> None:
    """latents_stats.pt, (1,C,1,1), or (1,C,h,w) where every place has its own."""
    statistics = cache.statistics
    tensors: dict[str, Tensor] = {"mean": statistics.mean[None], "std": statistics.std[None]}
    replace_file(out / STATISTICS, lambda file: torch.save(tensors, file))
