"""Latents as other programs leave them: LightningDiT's shards, REG's folders, and files of statistics.

LightningDiT    ROOT/*.safetensors, in the order of their names: latents and latents_flip (n,C,h,w), the evaluation crop
                and its mirror image, one sample of a posterior each; labels (n,). Beside them latents_stats.pt.
REG             ROOT/vae_latents/dataset.json {"labels": [[name, label], ...]} and an array (2C,h,w) in each of these
                files: mean and standard deviation of an image's posterior.

All are in the tokenizer's own units.

Shapes: N images, n of a shard, b of a block, V views, (C,h,w) a latent.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors
import torch

from vfmtok.code import Latents
from vfmtok.data.latent_statistics import LatentStatistics, checked
from vfmtok.errors import DataError
from vfmtok.weights.reading import read_arrays

STATISTICS = "latents_stats.pt"
VIEWS = ("centre", "centre flipped")
EPSILON = 1e-5  # what RAE adds to a variance and VFMTok2 to a standard deviation


class LightningDiTLatents:
    """A folder of LightningDiT's shards.

    Attributes:
        path: the folder.
        labels: (N,) int64.
        views: names, one or two.
        moments: whether it has mean and standard deviation; here latents.
    """

    moments = False

    def __init__(self, path: Path, code: Latents):
        """Raises DataError: there are no such shards, or they hold other latents than ``code``."""
        self.path, self._shape = path, tuple(code.shape)
        self._files = sorted(path.glob("*.safetensors"))
        if not self._files:
            raise DataError(f"{path} holds no *.safetensors, as LightningDiT's latents are")
        with_flips = {self._check(file) for file in self._files}
        if len(with_flips) > 1:
            raise DataError(f"only some of the shards in {path} hold latents_flip")
        self.views = VIEWS if with_flips.pop() else VIEWS[:1]
        labels = [_tensors(file, "labels")[0] for file in self._files]
        self._ends = np.cumsum([len(part) for part in labels])
        self.labels = np.concatenate(labels).astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def _check(self, file: Path) -> bool:
        """Whether the shard has mirror images. Raises DataError."""
        try:
            with safetensors.safe_open(file, "np") as shard:
                found = {name: tuple(shard.get_slice(name).get_shape()) for name in shard.keys()}  # noqa: SIM118
        except Exception as error:  # damaged files raise nearly anything
            raise DataError(f"cannot read {file}: {error}") from None
        count = found.get("labels", (0,))[0]
        for name in ("latents", "latents_flip") if "latents_flip" in found else ("latents",):
            if "labels" not in found or found.get(name) != (count, *self._shape):
                holds = ", ".join(f"{key} {shape}" for key, shape in sorted(found.items()))
                raise DataError(f"{file} holds {holds}; wanted are labels and latents (n, {str(self._shape)[1:]}")
        return "latents_flip" in found

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(b,V,1,C,h,w) float32 of consecutive images ``rows`` (b,). Raises DataError."""
        parts, names = [], ("latents", "latents_flip")[: len(self.views)]
        for index in range(len(self._files)):
            start = self._ends[index - 1] if index else 0
            low, high = max(rows[0], start), min(rows[-1] + 1, self._ends[index])
            if low < high:
                views = _tensors(self._files[index], *names, rows=slice(int(low - start), int(high - start)))
                parts.append(np.stack(views, 1)[:, :, None].astype(np.float32))
        return np.concatenate(parts)

    def statistics(self, code: Latents) -> LatentStatistics | None:
        """Of latents_stats.pt, if it is there. Raises DataError, WeightsError."""
        file = self.path / STATISTICS
        return read_statistics(file, code) if file.exists() else None


def _tensors(file: Path, *names: str, rows: slice = slice(None)) -> Sequence[np.ndarray]:
    """Rows of a shard's tensors as NumPy's, whatever their floating point. Raises DataError."""
    try:
        with safetensors.safe_open(file, "pt") as shard:
            tensors = [shard.get_slice(name)[rows] for name in names]
    except Exception as error:
        raise DataError(f"cannot read {file}: {error}") from None
    return [(tensor.float() if tensor.is_floating_point() else tensor).numpy() for tensor in tensors]


class REGLatents:
    """A folder of REG's arrays. Attributes as of ``LightningDiTLatents``; images lie in the order of their names."""

    moments, views = True, VIEWS[:1]

    def __init__(self, path: Path, code: Latents):
        """Raises DataError: there is no list of them, or it names no labels."""
        places = [place for place in (path / "vae_latents", path) if (place / "dataset.json").is_file()]
        if not places:
            raise DataError(f"{path} holds no vae_latents/dataset.json, as REG's latents have")
        self.path, self._shape = places[0], tuple(code.shape)
        try:
            labelled = json.loads((self.path / "dataset.json").read_text(encoding="utf-8"))["labels"]
            self._names, labels = zip(*sorted((str(name), int(label)) for name, label in labelled), strict=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path / 'dataset.json'} names no labels of files: {error!r}") from None
        unsafe = [name for name in self._names if name.startswith("/") or ".." in Path(name).parts]
        if unsafe or min(labels) < 0:
            raise DataError(f"{self.path / 'dataset.json'} names {unsafe[0] if unsafe else 'labels below 0'}")
        self.labels = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(b,1,2,C,h,w) float32 of images ``rows`` (b,). Raises DataError."""
        channels, *places = self._shape
        return np.stack([self._read(row) for row in rows]).reshape(len(rows), 1, 2, channels, *places)

    def _read(self, row: int) -> np.ndarray:
        file, channels = self.path / self._names[row], self._shape[0]
        try:
            moments = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"cannot read {file}: {' '.join(str(error).split())}") from None
        moments = moments[0] if moments.ndim == 4 and len(moments) == 1 else moments
        wanted = (2 * channels, *self._shape[1:])
        if moments.shape != wanted or moments.dtype.kind != "f" or (moments[channels:] < 0).any():
            raise DataError(
                f"{file} holds {moments.shape} {moments.dtype}; wanted are {wanted} floats: means, then standard "
                "deviations, which are not negative"
            )
        return moments.astype(np.float32)

    def statistics(self, code: Latents) -> LatentStatistics | None:
        """Of latents_stats.pt, beside the list or above it, if it is there. Raises DataError, WeightsError."""
        files = [place / STATISTICS for place in (self.path, self.path.parent) if (place / STATISTICS).exists()]
        return read_statistics(files[0], code) if files else None


FORMATS = {"lightningdit": LightningDiTLatents, "reg": REGLatents}


def read_statistics(path: Path, code: Latents) -> LatentStatistics:
    """A published file of statistics of such latents, of one of three layouts:

    - mean, std: LightningDiT's and VFM-VAE's, (1,C,1,1);
    - mean, var (C,h,w): RAE's, a variance: the deviation is sqrt(var + 1e-5);
    - mean, var (C,h*w): VFMTok2's NumPy arrays, whose "var" is a standard deviation: the deviation is var + 1e-5.

    How many latents were counted is in none of them (0). Raises DataError, WeightsError.
    """
    found = read_arrays(path)
    mean, std, var = (found.get(name) for name in ("mean", "std", "var"))
    if mean is None or (std is None) == (var is None):
        raise DataError(f"{path} holds {sorted(found)}, not mean and std, nor mean and var")
    if std is None:
        std = var.float() + EPSILON if var.ndim == 2 else (var.float() + EPSILON).sqrt()
    if mean.ndim == 2 and mean.numel() == np.prod(code.shape):
        mean, std = mean.reshape(code.shape), std.reshape(code.shape)
    mean, std = (values[0] if values.ndim == 4 and len(values) == 1 else values for values in (mean, std))
    statistics = checked(mean.to(torch.float32), std, 0, path)
    if tuple(statistics.mean.shape) not in (tuple(code.shape), (code.shape[0], 1, 1)):
        raise DataError(f"{path} is of latents {tuple(statistics.mean.shape)}, not of {code}")
    return statistics
