"""From a name to a model: ``from_pretrained``. The weights are located here and loaded in ``loading.py``.

from_pretrained("yexiguafu/VFMTok")               the published tokenizer
from_pretrained("yexiguafu/VFMTok", "GPT-L")      a published generator
from_pretrained("FoundationVision/LlamaGen", "vq_ds16_c2i")   a part by its name, also "...LlamaGen:vq_ds16_c2i"
from_pretrained("me/my-tokenizer")                what push_to_hub wrote
from_pretrained("results/emoji64")                a run, one of its checkpoints, what save_pretrained wrote
from_pretrained("vfmtok-tokenizer.pt")            a file under the released names
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from vfmtok.errors import ConfigError, WeightsError
from vfmtok.generators import family_of_size
from vfmtok.pretrained import loading
from vfmtok.pretrained.published import (
    PUBLISHED,
    VFMTOK,
    PublishedFile,
    Section,
    laid_out,
    published_file,
    split_name,
)
from vfmtok.weights import reading, saved
from vfmtok.weights.download import AbsentError, UnreachedError, asked_sha256, fetch, hub_access
from vfmtok.weights.reading import Preference

log = logging.getLogger(__name__)

CONFIG_FILE, MODEL_FILE = "config.yaml", "model.safetensors"
FOLDERS = {"tokenizer": ("tokenizer",), "generator": ("generator", "gpt")}  # of parts; the last is version 0.1's


def from_pretrained(
    name: str | Path,
    part: str = "tokenizer",
    *,
    config: Any = None,
    overrides: Iterable[str] = (),
    prefer: Preference | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    sha256: str | None = None,
    statistics: str | Path | None = None,
) -> nn.Module:
    """A tokenizer or a generator, of whatever kind, on the CPU, in eval mode and without gradients.

    Args:
        name: see the top of the file. What exists here as a file or folder is taken before the Hub is asked.
        part: "tokenizer" or "generator" ("gpt" is the same); of published weights the part's name, such as "GPT-B"
            (``vfmtok download NAME --list`` tells them); of a generator's file the name of its size.
        config: the configuration or its file, for weights that do not bring it. Without it a file is taken for VFMTok's
            published tokenizer, or the generator of the size that ``part`` names.
        overrides: "a.b=value" changes of the configuration, such as "encoder.weights=dinov2_vitl14_reg4_pretrain.pth".
            Unless this or the configuration names a file, the published tokenizer's DINOv2 is looked for in
            ``init_models/`` and then on the Hub.
        prefer: which weights to take where there are both: their average ("ema") or the last ones ("model"); None:
            those that published weights were sampled with by their publishers, else the average.
        revision: branch, tag or commit of the Hub repository.
        cache_dir: instead of huggingface_hub's cache.
        local_files_only: ask nobody: what is not in the cache is an error. HF_HUB_OFFLINE=1 does the same.
        sha256: what the weights' file must have, besides what the Hub states.
        statistics: of a generator of latents: the file of their mean and standard deviation, where its weights do not
            bring them. Without them it samples normalised latents, which no tokenizer decodes; a warning says so.

    Raises:
        WeightsError: nothing is there, or it can't be had, is damaged, or of another model.
        ConfigError: the configuration is missing or can't be used.
    """
    if (named := split_name(name)) is not None:
        name, part = named[0], named[1] or part
    row = _row(name, part)
    section, size = (row.section, row.size) if row is not None else _meaning(part)
    with hub_access(cache_dir, True if local_files_only else None):
        path = locate(name, part, revision, sha256, prefer or "ema")
        weights = loading.read_file(path, row if path.is_file() else None, section, prefer)
        if config is None and section == "tokenizer" and weights.config is None:
            config = (row or PUBLISHED[VFMTOK].parts["tokenizer"]).config
        if size is not None and (config is None or weights.config is not None):
            own = loading.generator_config(weights, size, {})  # raises for a run of another size
            config = config or own
        if config is None and weights.config is None:
            raise ConfigError(f"{weights.source} does not say which size it is: give part='GPT-B' or a config")
        model = loading.build(weights, config, overrides)
    if statistics is not None:
        loading.use_statistics(model, weights, statistics)
    elif getattr(model, "latent_statistics", ()) is None:
        log.warning(
            "%s does not bring the mean and standard deviation of the latents that it learned: its samples stay "
            "normalised (from_pretrained(..., statistics=FILE))",
            weights.source,
        )
    return model


def _row(name: str | Path, part: str) -> PublishedFile | None:
    """Of a part of a published repository, on the Hub or laid into a folder. Raises WeightsError."""
    if split_name(name) is not None:
        return published_file(str(name), "generator" if part in FOLDERS["generator"] else part)
    folder = Path(name).expanduser()
    return laid_out(folder, part) if folder.is_dir() else None


def _meaning(part: str) -> tuple[Section, str | None]:
    """What a part is, and the size that it names. Raises VFMTokError for one that is none."""
    section = next((section for section, names in FOLDERS.items() if part in names), None)
    if section is not None:
        return section, None
    family_of_size(part)
    return "generator", part


def locate(
    name: str | Path,
    part: str = "tokenizer",
    revision: str | None = None,
    sha256: str | None = None,
    prefer: Preference = "ema",
) -> Path:
    """The folder or file on this machine that holds a part, downloaded if ``name`` is a Hub repository.

    Raises WeightsError.
    """
    here = Path(name).expanduser()
    if here.exists():
        path = _part_of_folder(here, part) if here.is_dir() else here
        _check_asked(path, part, asked_sha256(sha256), prefer)
        return path
    repository = str(name)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", repository):
        raise WeightsError(f"there is no file or folder {name}, and it is no Hub repository's name (owner/name)")
    try:
        return download_part(repository, part, revision, sha256)
    except AbsentError as error:
        raise WeightsError(f"{error}; nor is there a file or folder {name} here") from None


def download_part(repository: str, part: str, revision: str | None = None, sha256: str | None = None) -> Path:
    """The file (published repositories) or folder (ours) of a part, downloaded unless it is there.

    Raises WeightsError.
    """
    if repository not in PUBLISHED:
        return _fetch_saved(repository, _folders(part), revision, sha256)
    published = published_file(repository, "generator" if part in FOLDERS["generator"] else part)
    return fetch(repository, published.file, revision, sha256 or published.sha256)


def _check_asked(path: Path, part: str, sha256: str | None, prefer: Preference) -> None:
    """Raise WeightsError unless the file that is loaded from ``path`` has this hash, if one is asked for."""
    if sha256 is None:
        return
    file = path
    if path.is_dir():
        folder, taken = loading.checkpoint_part(path, part, prefer)
        file = saved.part_file(folder, taken)
    if reading.sha256(file) != sha256:
        raise WeightsError(f"{file} does not have the SHA-256 {sha256}")


def _folders(part: str) -> tuple[str, ...]:
    """The folders that may hold a part."""
    names = next((names for names in FOLDERS.values() if part in names), ())
    return part, *(name for name in names if name != part)


def _part_of_folder(folder: Path, part: str) -> Path:
    """A subfolder named after the part, or the part's file where published repositories have it, or the folder."""
    for name in _folders(part):
        if (folder / name / CONFIG_FILE).is_file():
            return folder / name
    row = laid_out(folder, part)
    return folder if row is None else folder / row.file


def _fetch_saved(repository: str, folders: tuple[str, ...], revision: str | None, sha256: str | None) -> Path:
    """What ``push_to_hub`` wrote: the part in a subfolder of its name, or alone at the top."""
    for folder in (*folders, ""):
        place = f"{folder}/" if folder else ""
        try:
            config = fetch(repository, place + CONFIG_FILE, revision)
            break
        except AbsentError:
            if not folder:
                raise
        except UnreachedError as error:  # but the cache may have one elsewhere
            if (found := _cached_config(repository, folders, revision)) is None:
                raise error from None
            place, config = found
            break
    commit = config.parents[place.count("/")].name  # the cache keeps every commit in a folder: both files are of one
    fetch(repository, place + MODEL_FILE, commit if re.fullmatch("[0-9a-f]{40}", commit) else revision, sha256)
    return config.parent


def _cached_config(repository: str, folders: tuple[str, ...], revision: str | None) -> tuple[str, Path] | None:
    for place in (*(f"{folder}/" for folder in folders), ""):
        try:
            with hub_access(offline=True):
                return place, fetch(repository, place + CONFIG_FILE, revision)
        except UnreachedError:
            continue
    return None
