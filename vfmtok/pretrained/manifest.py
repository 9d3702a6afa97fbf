"""Manifests: a published number and everything it takes to measure it again, one YAML file each (pretrained/manifests).

The numbers of one row of a published table that one run gives share a file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vfmtok.config import closest_match, load_config, require, require_positive
from vfmtok.errors import ConfigError
from vfmtok.generators.gpt.config import GPT_SIZES

FOLDER = Path(__file__).parent / "manifests"
NUMBERS = {  # that each task measures
    "reconstruction": ("rFID", "rIS", "PSNR", "SSIM", "LPIPS", "codebook usage"),
    "generation": ("gFID", "sFID", "IS", "Pr", "Rc"),
}


@dataclass(frozen=True)
class Expected:
    """A published number and how far from it a measurement may be."""

    name: str
    value: float
    band: float


@dataclass(frozen=True)
class Sampling:
    """What is sampled; see ``evaluation.samples.Samples``."""

    cfg_scale: float
    cfg_interval: int
    top_k: int
    top_p: float
    temperature: float
    precision: Literal["none", "fp16", "bf16"]
    classes: Literal["random", "balanced"]
    seed: int


@dataclass(frozen=True)
class Manifest:
    """A published measurement."""

    title: str
    source: str  # table and row
    task: Literal["reconstruction", "generation"]
    tokenizer: str  # published repository, folder or file
    count: int  # images
    image_size: int  # at which they are compared
    reference: str  # what they are compared with
    evaluator: str
    expected: tuple[Expected, ...]
    band_reason: str  # why the bands are as wide as they are
    assumptions: tuple[str, ...] = ()  # what the source leaves open, and what is taken for it
    gpt: str | None = None
    gpt_model: str | None = None  # its size; None: ``gpt`` is a run or folder of ours, which knows it
    prefer: Literal["ema", "model"] = "ema"  # the weights to take where a file has both: their average, or the last
    sampling: Sampling | None = None

    def __post_init__(self):
        require_positive(self, "", "count", "image_size")
        require(len(self.expected) > 0, "expected", "must name a number", self.expected)
        for number in self.expected:
            known = NUMBERS[self.task]
            hint = closest_match(number.name, known)
            require(number.name in known, "expected.name", f"must be one of {', '.join(known)}{hint}", number.name)
            require(number.band > 0, f"expected.band of {number.name}", "must be positive", number.band)
        for name in ("gpt", "sampling"):
            given = getattr(self, name) is not None
            require(given == (self.task == "generation"), name, f"does not fit task {self.task}", getattr(self, name))
        fits = self.gpt_model is None or self.task == "generation"
        require(fits, "gpt_model", f"does not fit task {self.task}", self.gpt_model)
        sizes = ", ".join(GPT_SIZES)
        require(self.gpt_model in (None, *GPT_SIZES), "gpt_model", f"must be one of {sizes}", self.gpt_model)


def manifest_names() -> list[str]:
    """Of the published ones."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_manifest(name: str) -> Manifest:
    """A published one by name, or one's own by the path of its file.

    Raises ConfigError: there is none (names the closest match), or it breaks the schema (names the key).
    """
    if name in manifest_names():
        return load_config(FOLDER / f"{name}.yaml", kind=Manifest)
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return load_config(path, kind=Manifest)
    hint = closest_match(name, manifest_names())
    raise ConfigError(f"no manifest '{name}'{hint}: give one of {', '.join(manifest_names())}, or a YAML file")
