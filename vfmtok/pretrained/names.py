"""From a name to a model: a Hub repository, a folder or a file.

from_pretrained("yexiguafu/VFMTok")               the published tokenizer
from_pretrained("yexiguafu/VFMTok", "GPT-L")      a published generator
from_pretrained("me/my-tokenizer")                what push_to_hub wrote
from_pretrained("results/emoji64")                a run, one of its checkpoints, what save_pretrained wrote
from_pretrained("vfmtok-tokenizer.pt")            a file under the released names
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from vfmtok.config import load_config, with_overrides
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.generators import AnyGeneratorConfig
from vfmtok.generators.gpt.config import gpt_config
from vfmtok.pretrained import loading as pretrained
from vfmtok.pretrained.published import PAPER_TOKENIZER, PUBLISHED, published_file
from vfmtok.weights import reading
from vfmtok.weights.download import AbsentError, UnreachedError, asked_sha256, fetch, hub_access

CONFIG_FILE, MODEL_FILE = "config.yaml", "model.safetensors"


def from_pretrained(
    name: str | Path,
    part: str = "tokenizer",
    *,
    config: Any = None,
    overrides: Iterable[str] = (),
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    sha256: str | None = None,
) -> nn.Module:
    """A VFMTok or a GPT on the CPU, in eval mode and without gradients.

    Args:
        name: see the top of the file. What exists here as a file or folder is taken before the Hub is asked.
        part: "tokenizer" or "gpt"; of published weights a generator is named by its size, "GPT-B" to "GPT-3B".
        config: the configuration, for files that do not bring it: its file, a TokenizerConfig or a GPTConfig. Without
            it a file is taken for the published tokenizer, or the published generator named by ``part``.
        overrides: "a.b=value" changes of the configuration, such as "encoder.weights=dinov2_vitl14_reg4_pretrain.pth".
            Unless this or the configuration names a file, the published tokenizer's DINOv2 is looked for in
            ``init_models/`` and then on the Hub.
        revision: branch, tag or commit of the Hub repository.
        cache_dir: instead of huggingface_hub's cache.
        local_files_only: ask nobody: what is not in the cache is an error. HF_HUB_OFFLINE=1 does the same.
        sha256: what the weights' file must have, besides what the Hub states.

    Where a file holds an average of the weights (EMA), it is taken.

    Raises:
        WeightsError: nothing is there, or it can't be had, is damaged, or of another model.
        ConfigError: the configuration is missing or can't be used.
    """
    if part not in ("tokenizer", "gpt") and str(name) not in PUBLISHED:
        gpt_config(part)  # an unknown one ends here, before anything is downloaded
    with hub_access(cache_dir, True if local_files_only else None):
        path = locate(name, part, revision, sha256)
        if part == "tokenizer":
            return pretrained.load_tokenizer(path, config or (None if path.is_dir() else PAPER_TOKENIZER), overrides)
        return _load_gpt(path, part, config, overrides)


def locate(name: str | Path, part: str = "tokenizer", revision: str | None = None, sha256: str | None = None) -> Path:
    """The folder or file on this machine that holds a part, downloaded if ``name`` is a Hub repository.

    Raises WeightsError.
    """
    here = Path(name).expanduser()
    if here.exists():
        path = _part_of_folder(here, part) if here.is_dir() else here
        sha256 = asked_sha256(sha256)
        file = pretrained.checkpoint_files(path, part)[0] if sha256 is not None and path.is_dir() else path
        if sha256 is not None and reading.sha256(file) != sha256:
            raise WeightsError(f"{file} does not have the SHA-256 {sha256}")
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
        return _fetch_saved(repository, part, revision, sha256)
    published = published_file(repository, part)
    return fetch(repository, published.file, revision, sha256 or published.sha256)


def _part_of_folder(folder: Path, part: str) -> Path:
    """A subfolder named after the part, or the part's file where published repositories have it, or the folder."""
    if (folder / part / CONFIG_FILE).is_file():
        return folder / part
    files = [folder / parts[part].file for parts in PUBLISHED.values() if part in parts]
    return next((file for file in files if file.is_file()), folder)


def _fetch_saved(repository: str, part: str, revision: str | None, sha256: str | None) -> Path:
    """What ``push_to_hub`` wrote: the part in a subfolder of its name, or alone at the top."""
    try:
        config, depth = fetch(repository, f"{part}/{CONFIG_FILE}", revision), 1
    except AbsentError:
        config, depth = fetch(repository, CONFIG_FILE, revision), 0
    except UnreachedError as error:  # but the cache may have one that is alone at the top
        try:
            with hub_access(offline=True):
                config, depth = fetch(repository, CONFIG_FILE, revision), 0
        except UnreachedError:
            raise error from None
    folder = f"{part}/" if depth else ""
    commit = config.parents[depth].name  # the cache keeps every commit in a folder: both files are of one
    fetch(repository, folder + MODEL_FILE, commit if re.fullmatch("[0-9a-f]{40}", commit) else revision, sha256)
    return config.parent


def _load_gpt(path: Path, part: str, config: Any, overrides: Iterable[str]) -> nn.Module:
    weights = pretrained.read_gpt_weights(path)
    if weights.config is not None and part != "gpt":
        pretrained.gpt_config_of(weights, part, {})  # raises for one of another size
    if isinstance(config, str | Path):
        return pretrained.build_gpt(weights, load_config(config, overrides, kind=AnyGeneratorConfig))
    config = config or weights.config
    if config is None and part == "gpt":
        raise ConfigError(f"{weights.source} does not say which size it is: give part='GPT-B' or a config")
    config = config or pretrained.gpt_config_of(weights, part, {})
    return pretrained.build_gpt(weights, with_overrides(config, overrides))
