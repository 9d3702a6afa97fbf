"""Weights and what is known of them, from a run's folder, a checkpoint, a saved model, a file or a published name; and
the models that they make.

Names and shapes are checked strictly; only fine-tuning may take a part (``finetuning.py``).
"""

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vfmtok.code import check_fits
from vfmtok.config import config_from_dict, config_to_dict, read_tree, with_overrides
from vfmtok.data.published_latents import read_statistics
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.generators import AnyGeneratorConfig, build_generator, family_of_size, generator_tree
from vfmtok.generators import generator_config as sized_config
from vfmtok.pretrained.published import PublishedFile, Section, published_file, split_name
from vfmtok.tokenizers import AnyTokenizerConfig, build_to_fill, build_tokenizer, load_config, tokenizer_tree
from vfmtok.weights import download, reading, saved
from vfmtok.weights.checkpoint import newest_checkpoint
from vfmtok.weights.hashing import tokenizer_hash
from vfmtok.weights.name_maps import copy_strictly, load_released
from vfmtok.weights.reading import Preference

# What config.yaml of a saved model (saving.py) holds besides the model's own section.
FACTS = ("model_sha256", "classes", "tokenizer_hash")
log = logging.getLogger(__name__)


@dataclass
class Weights:
    """Weights of a model, without a frozen encoder's, and what is known of them.

    Attributes:
        tensors: under our names where there is a ``config``, else under the released ones.
        source: where they are from, for messages.
        section: what model it is.
        config: its resolved configuration, or None: a file does not say.
        published: the row of a published file.
        classes: names by label, of a generator that knows them.
        tokenizer_hash: of the tokenizer whose code a generator learned, where that is known.
    """

    tensors: dict[str, Tensor]
    source: str
    section: Section
    config: Any = None
    published: PublishedFile | None = None
    classes: list[str] | None = None
    tokenizer_hash: str | None = None

    def check_tokenizer(self, digest: str) -> None:
        """Raise WeightsError if ``digest`` is not of the tokenizer that it learned from (files do not say)."""
        if self.tokenizer_hash is not None and self.tokenizer_hash != digest:
            raise WeightsError(
                f"{self.source} was trained on the tokens of another tokenizer (hash {self.tokenizer_hash[:12]}...) "
                f"than this one ({digest[:12]}...)"
            )


# --------------------------------------------------------------------------------------
# Models
# --------------------------------------------------------------------------------------


def load_tokenizer(
    path: str | Path,
    config: str | Path | AnyTokenizerConfig | None = None,
    overrides: Iterable[str] = (),
    prefer: Preference | None = None,
) -> nn.Module:
    """A tokenizer in eval mode, without gradients.

    Args:
        path: a run's folder (its newest checkpoint), a checkpoint's folder, a file of weights under the released names,
            or a published repository's name, with ``:PART`` where it has several tokenizers.
        config: the tokenizer's configuration or its file, for files that do not bring it.
        overrides: ``"a.b=value"`` changes of the configuration.
        prefer: the average of the weights (EMA) or the last ones, where there are both; None: the publisher's choice
            for published weights, else the average.

    Raises:
        ConfigError: no configuration is known, or it can't be used.
        WeightsError: nothing is there, or the weights are of another model.
    """
    return build(read_weights(path, "tokenizer", prefer=prefer), config, overrides)


def load_generator(
    path: str | Path,
    tokenizer: nn.Module,
    size: str | None,
    given: dict[str, Any],
    default_size: str | None = None,
    prefer: Preference | None = None,
    statistics: str | Path | None = None,
) -> tuple[nn.Module, Weights]:
    """A generator, in eval mode and without gradients, of the code of ``tokenizer``; and what is known of its weights.

    Args:
        path: as for ``load_tokenizer``.
        size: the name of its size ("GPT-B"), for files; a run's own configuration has to agree.
        given: further fields of its configuration, likewise.
        default_size: of a file whose size is not named.
        prefer: as for ``load_tokenizer``.
        statistics: a file of the mean and standard deviation of the latents that it learned, where its own weights do
            not bring them: published files of generators of latents.

    Raises:
        ConfigError: a contradiction, a file without a size or statistics, or a generator of another code.
        WeightsError: nothing is there, or the generator learned from another tokenizer.
    """
    weights = read_weights(path, "generator", size, prefer)
    weights.check_tokenizer(tokenizer_hash(tokenizer))
    if weights.config is None and weights.published is None:
        size = size or default_size
        if size is not None:
            given = family_of_size(size).config.fields_of_code(tokenizer.code) | given
    config = generator_config(weights, size, given)
    try:
        check_fits(config.code, tokenizer.code, "the tokenizer")
    except ConfigError as error:
        raise ConfigError(f"{error}{_companion(weights.published)}") from None
    generator = build(weights, config)
    use_statistics(generator, weights, statistics)
    return generator, weights


def use_statistics(generator: nn.Module, weights: Weights, path: str | Path | None) -> None:
    """Give a generator of latents the statistics of a file, in the place of its own. Raises VFMTokError."""
    if path is None:
        if getattr(generator, "latent_statistics", ()) is None:
            raise ConfigError(
                f"{weights.source} does not bring the mean and standard deviation of the latents that it learned: name "
                "their file (--latent-stats)"
            )
        return
    if not hasattr(generator, "use_statistics"):
        raise ConfigError(f"--latent-stats is for generators of latents: {weights.source} makes {generator.code}")
    found = read_statistics(Path(path).expanduser(), generator.code)
    generator.use_statistics(found.mean, found.std)


def _companion(row: PublishedFile | None) -> str:
    """What to say of the tokenizer that a published generator goes with."""
    if row is None or row.tokenizer is None:
        return ""
    settings = f" with {', '.join(row.tokenizer_settings)}" if row.tokenizer_settings else ""
    return f": {row.file} goes with the part {row.tokenizer} of its repository{settings}"


def build(weights: Weights, config: Any = None, overrides: Iterable[str] = ()) -> nn.Module:
    """The model of weights that were read, in eval mode and without gradients.

    Args:
        config: its configuration or the file of it; None: the one that the weights bring, or their publisher's.
        overrides: ``"a.b=value"`` changes of it.

    Raises:
        ConfigError: no configuration is known, or it can't be used.
        WeightsError: the weights are of another model.
    """
    if isinstance(config, str | Path):
        config = _read_config_file(config, weights.section)
    config = config or weights.config or (weights.published.config if weights.published else None)
    if config is None:
        flag = "--transformer-config-file" if weights.section == "tokenizer" else "--gpt-model"
        raise ConfigError(f"{weights.source} does not bring its configuration: name it ({flag})")
    config = with_overrides(config, overrides)
    build_empty = build_tokenizer if weights.config is None else build_to_fill
    model = build_generator(config) if weights.section == "generator" else build_empty(config)
    if weights.config is not None:
        copy_strictly(model, weights.tensors, weights.source)
    else:
        load_released(model, weights.tensors)
        row = weights.published
        if row is not None and row.statistics is not None:
            use_statistics(model, weights, download.fetch(*row.statistics))
    return model.eval().requires_grad_(False)


def generator_config(weights: Weights, size: str | None, given: dict[str, Any]) -> Any:
    """The configuration of a generator whose weights were read.

    A run brings its own, which neither ``size`` nor a ``given`` field may contradict. A file's is that of the named
    size, or of its row where it is a published one, with the fields that are given, and otherwise with those that its
    tensors tell.

    Raises:
        ConfigError: a contradiction, or a file without a size.
    """
    if weights.config is not None:
        fields = family_of_size(size).sizes[size] if size is not None else {}
        for name, value in {**fields, **given}.items():
            own = getattr(weights.config, name, "unknown")
            if own != value:
                raise ConfigError(f"the generator of {weights.source} has {name} {own}, not {value}")
        return weights.config
    row = weights.published
    if row is not None and size not in (None, row.size):
        raise ConfigError(f"{weights.source} is a {row.size}, not a {size}")
    size = size if row is None else row.size
    if size is None:
        raise ConfigError(f"{weights.source} does not bring its configuration: name the model (--gpt-model)")
    published = {} if row is None else config_to_dict(row.config)
    from_tensors = getattr(family_of_size(size).model, "fields_of_released", lambda tensors: {})(weights.tensors)
    return sized_config(size, **{**published, **from_tensors, **given})


# --------------------------------------------------------------------------------------
# Weights
# --------------------------------------------------------------------------------------


def read_weights(
    path: str | Path, section: Section | None = None, part: str | None = None, prefer: Preference | None = None
) -> Weights:
    """Read what ``load_tokenizer`` and ``load_generator`` load.

    Args:
        section: what it must be; None for a folder, which says what it is.
        part: the one that is meant of a published repository, such as "GPT-B", unless ``path`` names it.
        prefer: as for ``load_tokenizer``.

    Raises:
        WeightsError: nothing is there, or it is damaged or something else. ConfigError: it can't be used.
    """
    published, named = None, split_name(path)
    if named is not None:
        repository, own_part = named
        published = published_file(repository, own_part or part, section)
        if section not in (None, published.section):
            raise WeightsError(f"{repository}:{own_part or part} is no {section}: it is a {published.section}'s")
        path = download.fetch(repository, published.file, sha256=published.sha256)
    return read_file(path, published, section, prefer)


def read_file(
    path: str | Path, published: PublishedFile | None, section: Section | None = None, prefer: Preference | None = None
) -> Weights:
    """``read_weights`` of what is on this machine; ``published`` is its row, where it is a published file."""
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path, section, prefer or "ema")
    if section is None and published is None:
        raise WeightsError(f"{path} is no run's folder and no checkpoint's")
    tensors, taken = reading.read_named(path, prefer or (published.prefer if published else "ema"))
    source = f"{path} ('{taken}')" if taken else str(path)
    log.info("weights of %s", source)
    return Weights(tensors, source, section or published.section, published=published)


def _read_folder(path: Path, section: Section | None, prefer: Preference) -> Weights:
    folder, part = checkpoint_part(path, section or "model", prefer)
    tree = read_tree(folder / "config.yaml")
    found = _section_of(tree)
    if section not in (None, found):
        raise WeightsError(f"{folder} holds no {section}: it is a {found}'s (from_pretrained(path, '{found}'))")
    facts = {name: tree.get(name) for name in ("classes", "tokenizer_hash")}
    with contextlib.suppress(WeightsError, KeyError, TypeError):  # a saved model, or weights without their state.json
        facts = saved.read_state(folder)["numbers"]["parts"]["tokens"]
    tensors = saved.read_part(folder, part)
    source = str(folder / part) if (folder / part).is_dir() else str(folder / f"{part}.safetensors")
    log.info("weights of %s", source)
    config = _config_in(tree, found, folder / "config.yaml")
    known = (facts.get("classes"), facts.get("tokenizer_hash")) if found == "generator" else ()
    return Weights(tensors, source, found, config, None, *known)


def checkpoint_part(path: Path, what: str, prefer: Preference = "ema") -> tuple[Path, str]:
    """The checkpoint of a run's folder (or the folder itself) and the weights to use of it, "ema" or "model", checked.

    Raises WeightsError.
    """
    folder = newest_checkpoint(path) if (path / "checkpoints").is_dir() else path
    order = ("ema", "model") if prefer == "ema" else ("model", "ema")
    part = next((part for part in order if saved.has_part(folder, part)), None)
    if part is None or not (folder / "config.yaml").is_file():
        raise WeightsError(f"{path} holds no {what}: expected config.yaml beside model.safetensors or ema.safetensors")
    digest = _saved_sha256(folder / "config.yaml")
    if digest is not None and reading.sha256(saved.part_file(folder, part)) != digest:
        raise WeightsError(
            f"{folder / part}.safetensors is not the one that its config.yaml was written with: it was cut or changed"
        )
    return folder, part


def read_config(path: str | Path) -> AnyTokenizerConfig | None:
    """The tokenizer's configuration that ``read_weights`` finds, without reading the weights; None: a file of them."""
    named = split_name(path)
    if named is not None:
        found = published_file(*named, "tokenizer")
        if found.section != "tokenizer":
            raise WeightsError(f"{path} is no tokenizer: it is a generator's")
        return found.config
    path = Path(path).expanduser()
    if not path.is_dir():
        return None
    file = checkpoint_part(path, "tokenizer")[0] / "config.yaml"
    tree = read_tree(file)
    if _section_of(tree) != "tokenizer":
        raise WeightsError(f"{file.parent} holds no tokenizer: it is a generator's")
    return _config_in(tree, "tokenizer", file)


def _section_of(tree: dict[str, Any]) -> Section:
    """What a recipe or a saved model is; a file that holds a configuration alone is a tokenizer's."""
    return "generator" if tree.keys() & {"generator", "gpt"} else "tokenizer"


def _config_in(tree: dict[str, Any], section: Section, path: Path) -> Any:
    """The model's resolved configuration in a recipe or a saved model. Raises ConfigError."""
    if section == "tokenizer":
        return config_from_dict(tokenizer_tree(tree, (), str(path)), AnyTokenizerConfig, str(path), saved=True)
    return config_from_dict(generator_tree(tree, (), str(path)), AnyGeneratorConfig, str(path), saved=True)


def _read_config_file(path: str | Path, section: Section) -> Any:
    """A configuration that a person wrote. Raises ConfigError."""
    if section == "tokenizer":
        return load_config(path)
    return config_from_dict(generator_tree(read_tree(path), (), str(path)), AnyGeneratorConfig, str(path))


def _saved_sha256(config_file: Path) -> str | None:
    """What the weights beside a saved model's config.yaml must have; a run's recipe says nothing of it."""
    return read_tree(config_file).get("model_sha256")
