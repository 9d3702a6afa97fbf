"""Codes that lie in files as images: an npz with labels, and PNGs. Shared among processes, resumable (jobs.py).

Shapes: N codes, B batch, S side; a code is ids (K,) or latents (C,h,w).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vfmtok import distributed
from vfmtok.data.code_cache import Cache, as_code, check_tokenizer
from vfmtok.data.published_latents import LightningDiTLatents
from vfmtok.errors import ConfigError, DataError
from vfmtok.evaluation import jobs
from vfmtok.evaluation.samples import warnings_about, write_checked_samples
from vfmtok.files import replace_file
from vfmtok.layers.precision import full_float32
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.weights.hashing import tokenizer_hash


class StoredCodes(Protocol):
    """Codes in files. ``labels``: (N,) int64; ``about``: what makes them these and no others, for the job."""

    labels: np.ndarray
    about: dict[str, Any]

    def read(self, rows: np.ndarray) -> Tensor:
        """ids (B,K) int64 or latents (B,C,h,w) float32 of consecutive codes ``rows`` (B,)."""


class CachedView:
    """One view of a cache; of moments the means."""

    def __init__(self, cache: Cache, view: str | None, tokenizer: Tokenizer):
        """``view``: its name, or None for the first. Raises DataError: another tokenizer's cache; ConfigError."""
        check_tokenizer(cache, tokenizer_hash(tokenizer))
        names = cache.metadata["views"]
        if view is not None and view not in names:
            raise ConfigError(f"--view: the {cache} has no view '{view}'; there are {', '.join(names[:20])}")
        self._cache, self._view = cache, names.index(view) if view is not None else 0
        self.labels = cache.labels.numpy()
        kept = ("dataset_fingerprint", "num_samples", "posterior", "latent_dtype", "precision", "seed")
        facts = {name: cache.metadata.get(name) for name in kept}
        self.about = {"codes": str(cache.path.resolve()), "view": names[self._view], **facts}

    def read(self, rows: np.ndarray) -> Tensor:
        return as_code(self._cache.rows(rows)[:, self._view], self._cache.code)


class StoredShards:
    """Shards of latents and labels, such as a diffusion model's samples: LightningDiT's, or VFM-VAE's."""

    def __init__(self, path: Path, tokenizer: Tokenizer):
        """Raises DataError: no shards, or of other latents."""
        self._shards = LightningDiTLatents(path, tokenizer.code)
        self.labels = self._shards.labels
        files = sorted(path.glob("*.safetensors"))
        self.about = {"codes": str(path.resolve()), "files": [[file.name, file.stat().st_size] for file in files]}

    def read(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self._shards.read(rows)[:, 0, 0])


@dataclass(frozen=True)
class Decoded:
    """How many images of which size."""

    count: int
    size: int


def decode_codes(
    codes: StoredCodes,
    tokenizer: Tokenizer,
    folder: Path,
    world: distributed.World,
    *,
    size: int,
    batch: int,
    pictures: bool = False,
) -> dict[str, Any]:
    """Leave samples.npz (``arr_0`` (N,S,S,3) uint8 and ``labels`` (N,)), results.json and, with ``pictures``,
    images/NNNNNN.png in ``folder``. Every process must call it; an interrupted one is continued.

    Args:
        batch: B, of every process.

    Returns:
        the content of results.json.

    Raises:
        VFMTokError: the same on all processes.
    """
    job = {**codes.about, "tokenizer": tokenizer_hash(tokenizer), "size": size, "pictures": pictures}
    results = jobs.begin_together(folder, job, world)
    if results is not None:
        return results
    store = jobs.Blocks(folder, len(codes.labels))
    share = store.share_to_do(batch, world)
    with distributed.together():
        _decode_blocks(codes, tokenizer, folder, share, store, world, size, pictures)
    with distributed.together():
        if world.is_main:
            labels = codes.labels
            images = Decoded(len(labels), size)
            checked = write_checked_samples(store, images, labels, int(labels.max()) + 1, folder / "samples.npz")
            results = {"job": job, "samples": checked, "warnings": warnings_about(checked)}
            jobs.finish(folder, results)
    return distributed.gather(results)[0]


def _decode_blocks(
    codes: StoredCodes,
    tokenizer: Tokenizer,
    folder: Path,
    blocks: list[np.ndarray],
    store: jobs.Blocks,
    world: distributed.World,
    size: int,
    pictures: bool,
) -> None:
    """This process's share; a block is kept once its pictures are. Raises VFMTokError."""
    if pictures:
        try:
            (folder / "images").mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot make {folder / 'images'}: {error.strerror}") from None
    with tqdm(total=sum(map(len, blocks)), unit="image", disable=not world.is_main) as bar:
        for rows in blocks:
            with full_float32(world.device.type):
                pixels = tokenizer.decode_to_uint8(codes.read(rows).to(world.device), size).cpu().numpy()  # (B,S,S,3)
            if pictures:
                for row, image in zip(rows.tolist(), pixels, strict=True):
                    picture = Image.fromarray(image)
                    file = folder / "images" / f"{row:06d}.png"
                    replace_file(file, lambda opened, p=picture: p.save(opened, "PNG"))
            store.write(rows, {"images": pixels, "labels": codes.labels[rows]})
            bar.update(len(rows))
