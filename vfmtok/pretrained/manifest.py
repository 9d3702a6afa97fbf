"""Manifests: a published number and everything it takes to measure it again, one YAML file each (pretrained/manifests).

A file is one measurement, or a model with ``rows`` (with and without guidance): what a row says is added to what the
file says for all. The row "cfg" of gpt-b.yaml is the manifest ``gpt-b-cfg``; of a file of one's own, ``FILE.yaml:cfg``.
"""

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vfmtok.config import closest_match, config_from_dict, read_tree, require, require_positive
from vfmtok.errors import ConfigError
from vfmtok.generators import family_of_size

FOLDER = Path(__file__).parent / "manifests"
CLOSEST = 4  # names to offer for one that is unknown
NUMBERS = {  # that each task measures
    "reconstruction": (
        *("rFID", "rIS", "PSNR", "SSIM", "SSIM (data range 2)", "SSIM (Gaussian)", "LPIPS"),
        *("codebook usage", "codebook usage of segment 1", "codebook usage of segment 2"),
    ),
    "generation": ("gFID", "sFID", "IS", "Pr", "Rc"),
}


@dataclass(frozen=True)
class Expected:
    """A published number and how far from it a measurement may be.

    Attributes:
        paper: what a paper prints, where ``value`` is another source's (the manifest's ``source`` says which); it is
            shown and decides nothing.
        binding: False: it is of another run than the released file, or measured by others: shown for comparison, and
            decides nothing.
    """

    name: str
    value: float
    band: float
    paper: float | None = None
    binding: bool = True

    @property
    def published(self) -> str:
        """The value, its band and the paper's value, for people."""
        paper = f" (paper {self.paper:g})" if self.paper is not None else ""
        return f"{self.value:g} ± {self.band:g}{paper}"

    def __str__(self) -> str:
        return f"{self.name} {self.published}"


@dataclass(frozen=True)
class PublishedSamples:
    """What is sampled; see ``evaluation.samples.Samples``. ``settings`` are further ones of the generator's family, as
    "key=value"; what is None is as it is by default."""

    precision: Literal["none", "fp16", "bf16"]
    classes: Literal["random", "balanced"]
    seed: int
    cfg_scale: float | None = None
    cfg_interval: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    uint8_offset: float | None = None  # 127.5 where the published program truncates 127.5 x + 127.5
    settings: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """Of test_net.py."""
        words = ["--precision", self.precision, "--classes", self.classes, "--global-seed", str(self.seed)]
        for name in ("cfg_scale", "cfg_interval", "top_k", "top_p", "temperature", "uint8_offset"):
            if (value := getattr(self, name)) is not None:
                words += [f"--{name.replace('_', '-')}", f"{value:g}"]
        return words + [word for setting in self.settings for word in ("--sampling", setting)]


@dataclass(frozen=True)
class Variant:
    """The same with other ``settings`` ("key=value"), reported beside the published ones: it decides nothing."""

    name: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """A published measurement."""

    title: str
    source: str  # table and row
    task: Literal["reconstruction", "generation"]
    tokenizer: str  # published repository, with :PART where it holds several; folder or file
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
    latent_stats: str | None = None  # of a generator of latents: where the file of their statistics is published
    sampling: PublishedSamples | None = None
    variants: tuple[Variant, ...] = ()  # of a generation
    tokenizer_settings: tuple[str, ...] = ()  # changes of its configuration, such as image_size=384
    rfid_against: Literal["originals", "dataset"] = "originals"  # as they are decoded, or cut at image_size directly
    resize: Literal["bicubic", "pillow"] = "bicubic"  # of a reconstruction: see evaluation.resizing
    protocol: Literal["ours", "vfm-vae"] = "ours"  # of its pixels: see evaluation.pixel_protocols

    def __post_init__(self):
        require_positive(self, "", "count", "image_size")
        require(len(self.expected) > 0, "expected", "must name a number", self.expected)
        for number in self.expected:
            known = NUMBERS[self.task]
            hint = closest_match(number.name, known)
            require(number.name in known, "expected.name", f"must be one of {', '.join(known)}{hint}", number.name)
            require(number.band > 0, f"expected.band of {number.name}", "must be positive", number.band)
        require(len(self.deciding) > 0, "expected", "must name a number that decides", self.expected)
        for name in ("gpt", "sampling"):
            given = getattr(self, name) is not None
            require(given == (self.task == "generation"), name, f"does not fit task {self.task}", getattr(self, name))
        foreign = {
            "reconstruction": {"gpt_model": None, "variants": (), "latent_stats": None},
            "generation": {"rfid_against": "originals", "resize": "bicubic", "protocol": "ours"},
        }
        for name, default in foreign[self.task].items():
            value = getattr(self, name)
            require(value == default, name, f"does not fit task {self.task}", value)
        if self.gpt_model is not None:
            family_of_size(self.gpt_model)

    def measures(self, name: str) -> bool:
        """Whether a number of this name was published."""
        return any(number.name == name for number in self.expected)

    @property
    def deciding(self) -> list[Expected]:
        """The numbers that must all be within their bands."""
        return [number for number in self.expected if number.binding]

    @property
    def shown(self) -> list[Expected]:
        """The numbers that are measured besides and decide nothing."""
        return [number for number in self.expected if not number.binding]


def manifest_names() -> list[str]:
    """Of the published ones."""
    return sorted(_published())


def find_manifest(name: str) -> Manifest:
    """A published one by name, or one's own by the path of its file and, if it has several rows, FILE.yaml:ROW.

    Raises ConfigError: there is none (names the closest ones), or it breaks the schema (names the key).
    """
    published = _published()
    if name in published:
        return published[name]
    file, _, row = name.rpartition(":") if name.rpartition(":")[0].endswith((".yaml", ".yml")) else (name, "", "")
    path = Path(file).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        manifests = read_manifests(path)
        if row not in manifests:
            raise ConfigError(
                f"{path} has the rows {', '.join(manifests)}: name one, as {path}:{next(iter(manifests))}"
            )
        return manifests[row]
    close = [known for known in sorted(published) if known.startswith(name)]
    close = close or difflib.get_close_matches(name, published, n=CLOSEST, cutoff=0.5)
    hint = f" (closest: {', '.join(close[:CLOSEST])})" if close else ""
    raise ConfigError(f"no manifest '{name}'{hint}: give a name of `vfmtok reproduce --list`, or a YAML file")


def read_manifests(path: Path) -> dict[str, Manifest]:
    """The manifests of a file by row; one without rows is "". Raises ConfigError."""
    tree = read_tree(path)
    rows = tree.pop("rows", {"": {}})
    if not isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in rows.values()):
        raise ConfigError(f"{path}: rows must be a section of sections")
    return {name: config_from_dict(_with_row(tree, row), Manifest, str(path)) for name, row in rows.items()}


@functools.cache
def _published() -> Mapping[str, Manifest]:
    found = {}
    for path in FOLDER.glob("*.yaml"):
        for row, manifest in read_manifests(path).items():
            found[f"{path.stem}-{row}" if row else path.stem] = manifest
    return found


def _with_row(tree: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says for all and what a row adds to it: texts and lists are continued, sections and values set."""
    whole = dict(tree)
    for key, value in row.items():
        before = whole.get(key)
        if isinstance(before, str) and isinstance(value, str):
            value = f"{before.strip()}, {value.strip()}"
        elif isinstance(before, list) and isinstance(value, list):
            value = [*value, *before]
        elif isinstance(before, Mapping) and isinstance(value, Mapping):
            value = {**before, **value}
        whole[key] = value
    return whole
