"""The samples of an evaluation: which they are, whether they are what they should be, and how they look.

Shapes: N samples, E side of the images.
"""

import hashlib
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vfmtok.data.order import evenly_spaced
from vfmtok.errors import ConfigError, EvaluationError
from vfmtok.evaluation import jobs
from vfmtok.evaluation.image_sources import NpzImages
from vfmtok.files import replace_file
from vfmtok.generators.contract import SamplingSettings
from vfmtok.generators.token_sampling import TokenSampling
from vfmtok.pictures.contact_sheet import Section, draw_sheet

GRID_CLASSES, GRID_IMAGES = 10, 8


@dataclass(frozen=True)
class Samples:
    """Which images are sampled. ``classes``: "random" draws every label (published), "balanced" takes them in turn."""

    sampling: SamplingSettings = field(default_factory=TokenSampling)  # of the generator's family
    count: int = 50_000
    size: int = 256
    seed: int = 0
    classes: str = "random"
    precision: str = "none"  # of the generator; the tokenizer decodes in float32
    uint8_offset: float = 128.0  # of pixels in [-1,1]: 127.5 x + this is truncated

    def __post_init__(self):
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"the seed must be in [0,2^64), got {self.seed}")
        if self.count < 1 or self.size < 1:
            raise ConfigError(f"the number of samples and their size must be positive, got {self.count}, {self.size}")
        if not 127 <= self.uint8_offset <= 128:
            raise ConfigError(f"--uint8-offset must be from 127 to 128, got {self.uint8_offset}")
        if self.classes not in ("random", "balanced"):
            raise ConfigError(f"classes are 'random' or 'balanced', not '{self.classes}'")

    @property
    def job(self) -> dict[str, Any]:
        """All that makes other images, flat, for the job of an evaluation (jobs.py)."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sampling"}
        return asdict(self.sampling) | own

    @property
    def unsaid(self) -> dict[str, Any]:
        """What a job means that does not mention a setting, which came later."""
        return asdict(type(self.sampling)()) | {"uint8_offset": Samples.uint8_offset}

    @property
    def guidance(self) -> str:
        """What every result carries in its name."""
        return self.sampling.guidance

    @property
    def protocol(self) -> str:
        """What the numbers of these samples begin with."""
        words = [f"{self.count:,} samples at {self.size} px", self.guidance, f"{self.classes} classes"]
        words += [f"seed {self.seed}", *(f"{name} {value}" for name, value in self._changed() if name != "classes")]
        return ", ".join(words)

    @property
    def name(self) -> str:
        """Of the folder: everything that makes other images."""
        return f"{self.guidance.replace(' ', '-').lower()}-{self.name_at_any_scale}"

    @property
    def name_at_any_scale(self) -> str:
        """The same without the guidance."""
        words = [f"{self.count}x{self.size}px", f"seed-{self.seed}"]
        return "-".join([*words, *(f"{name.replace('-', '')}-{value}" for name, value in self._changed())])

    def _changed(self) -> list[tuple[str, Any]]:
        """(flag, value) of every setting that differs from its default, guidance and what names always say aside."""
        named = {f.name: (getattr(self.sampling, f.name), f.default) for f in fields(self.sampling)}
        named |= {
            name: (getattr(self, name), getattr(Samples, name)) for name in ("classes", "precision", "uint8_offset")
        }
        return [
            (name.replace("_", "-"), value)
            for name, (value, default) in named.items()
            if value != default and not name.startswith("cfg_")
        ]

    def labels(self, num_classes: int) -> np.ndarray:
        """(N,) int64; label n depends on (seed, n) alone. Raw Philox words stay the same in every NumPy."""
        if self.classes == "balanced":
            return np.arange(self.count) % num_classes
        words = np.random.Philox(key=[self.seed, 0x6C6162656C73]).random_raw(self.count)
        return (words % np.uint64(num_classes)).astype(np.int64)


# --------------------------------------------------------------------------------------
# Checking
# --------------------------------------------------------------------------------------


class ImageSet(Protocol):
    """So many square images."""

    count: int
    size: int


def write_checked_samples(
    blocks: jobs.Blocks, samples: ImageSet, labels: np.ndarray, num_classes: int, path: Path
) -> dict[str, Any]:
    """All blocks as one npz: ``arr_0`` (N,E,E,3) uint8 and ``labels`` (N,) int64, one by one: they may be 10 GB.

    Returns:
        what was counted.

    Raises:
        DataError: samples are missing, or the disk refuses.
        EvaluationError: labels, dtype, shape or range are not what they must be.
    """
    places, seen, flat, top = blocks.check_complete(), Counter(), 0, 0

    def write(file) -> None:
        nonlocal flat, top
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
                shape = (samples.count, samples.size, samples.size, 3)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(entry, header)
                for place in places:
                    images, found = blocks.read(place, "images", "labels")
                    _check_block(images, found, labels, place, samples)
                    seen.update(hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images)
                    flat += int((images == images[:, :1, :1]).all(axis=(1, 2, 3)).sum())
                    top = max(top, int(images.max()))
                    entry.write(np.ascontiguousarray(images).data)
            with archive.open("labels.npy", "w") as entry:
                np.lib.format.write_array(entry, labels)
        if top <= 1:
            raise EvaluationError("no pixel of the samples is above 1: these are not images of 0 to 255")

    replace_file(path, write)
    per_class = np.bincount(labels, minlength=num_classes)
    return {
        "count": samples.count,
        "classes": num_classes,
        "classes_without_samples": int((per_class == 0).sum()),
        "labels_per_class": [int(per_class.min()), int(per_class.max())],
        "copies": samples.count - len(seen),
        "single_colour": flat,
    }


def warnings_about(checked: dict[str, Any]) -> list[str]:
    """What people must know of what ``write_checked_samples`` counted."""
    found = (("copies", "are copies of others"), ("single_colour", "are of a single colour"))
    return [f"{checked[key]} of the {checked['count']} samples {text}" for key, text in found if checked[key]]


def _check_block(images: np.ndarray, found: np.ndarray, labels: np.ndarray, place: jobs.Place, samples: ImageSet):
    start, stop = place
    shape = (stop - start, samples.size, samples.size, 3)
    if images.dtype != np.uint8 or images.shape != shape:
        raise EvaluationError(f"samples {start} to {stop - 1} are {images.dtype} {images.shape}, not uint8 {shape}")
    if not np.array_equal(found, labels[start:stop]):
        raise EvaluationError(f"samples {start} to {stop - 1} do not have the labels of this seed and class choice")


# --------------------------------------------------------------------------------------
# What one looks at
# --------------------------------------------------------------------------------------


def draw_grid(folder: Path, samples: Samples, labels: np.ndarray, class_names: list[str] | None) -> None:
    """grid.png: up to ten classes, the first samples of each."""
    present = np.unique(labels)
    chosen = present[evenly_spaced(GRID_CLASSES, len(present))]
    wanted = {int(label): np.flatnonzero(labels == label) for label in chosen}
    shown = {int(index) for indices in wanted.values() for index in indices[:GRID_IMAGES]}
    found = {}
    for index, pixels in enumerate(NpzImages(folder / "samples.npz").read(0, max(shown) + 1)):
        if index in shown:
            found[index] = Image.fromarray(pixels)
    rows = []
    for label, indices in wanted.items():
        name = class_names[label] if class_names and label < len(class_names) else f"class {label}"
        rows.append((name, len(indices), [found[int(index)] for index in indices[:GRID_IMAGES]]))
    title = f"{samples.count:,} samples at {samples.size} px, {samples.guidance}, seed {samples.seed}"
    sheet = draw_sheet([Section(title, rows)])
    replace_file(folder / "grid.png", lambda file: sheet.save(file, "PNG"))
