"""Models from weights: a run's folder, one of its checkpoints, a file, or the name of a published repository.

Shapes and names are checked strictly (``load_tokenizer``); only fine-tuning may take a part (``load_matching``).
"""

import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from vfmtok.config import config_from_dict, with_overrides
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.generators import AnyGeneratorConfig, build_generator, generator_tree
from vfmtok.generators.gpt.config import gpt_config
from vfmtok.pretrained.published import PAPER_TOKENIZER, PUBLISHED, published_file
from vfmtok.tokenizers import AnyTokenizerConfig, build_tokenizer, load_config, tokenizer_tree
from vfmtok.weights import download, reading
from vfmtok.weights.hashing import tokenizer_hash
from vfmtok.weights.name_maps import copy_strictly, load_released, name_map, own_tensors, rename

# What config.yaml of a saved model (saving.py) holds besides the model's own section.
FACTS = ("model_sha256", "classes", "tokenizer_hash")
log = logging.getLogger(__name__)


@dataclass
class TokenizerWeights:
    """Weights without the frozen encoder's, and what is known of them."""

    tensors: dict[str, Tensor]
    config: Any  # of a tokenizer, or None: the file does not say
    source: str  # for messages


@dataclass
class GPTWeights:
    """Weights of a generator, and what is known of them."""

    tensors: dict[str, Tensor]
    config: Any  # GPTConfig, or None: the file does not say
    source: str  # for messages
    classes: list[str] | None = None  # names by label
    tokenizer_hash: str | None = None  # of the tokenizer whose ids it was trained on

    def check_tokenizer(self, digest: str) -> None:
        """Raise WeightsError if ``digest`` is not of the tokenizer that it learned from (files do not say)."""
        if self.tokenizer_hash is not None and self.tokenizer_hash != digest:
            raise WeightsError(
                f"{self.source} was trained on the tokens of another tokenizer (hash {self.tokenizer_hash[:12]}...) "
                f"than this one ({digest[:12]}...)"
            )


def load_tokenizer(
    path: str | Path, config_file: str | Path | AnyTokenizerConfig | None = None, overrides: Iterable[str] = ()
) -> nn.Module:
    """A tokenizer in eval mode, without gradients.

    Args:
        path: a run's folder (its newest checkpoint), a checkpoint's folder, a file of weights under the released names,
            or a published repository's name. Where there is an average of the weights (EMA), it is taken.
        config_file: the tokenizer's configuration or its file, for files that do not bring it.
        overrides: ``"a.b=value"`` changes of the configuration.

    Raises:
        ConfigError: no configuration is known, or it can't be used.
        WeightsError: nothing is there, or the weights are of another model.
    """
    weights = read_tokenizer_weights(path)
    if dataclasses.is_dataclass(config_file):
        config = with_overrides(config_file, overrides)
    elif config_file is not None:
        config = load_config(config_file, overrides)
    elif weights.config is not None:
        config = with_overrides(weights.config, overrides)
    elif str(path) in PUBLISHED:
        config = with_overrides(PAPER_TOKENIZER, overrides)
    else:
        raise ConfigError(f"{weights.source} does not bring its configuration: name it (--transformer-config-file)")
    tokenizer = build_tokenizer(config)
    if weights.config is not None:  # a folder of ours
        copy_strictly(tokenizer, weights.tensors, weights.source)
    else:
        load_released(tokenizer, weights.tensors)
    return tokenizer.eval().requires_grad_(False)


def load_gpt(path: str | Path, config: Any = None) -> nn.Module:
    """A generator in eval mode, without gradients.

    Args:
        path: a run's folder (its newest checkpoint), a checkpoint's folder, or a file of weights under the released
            names. Where there is an average of the weights (EMA), it is taken.
        config: a GPTConfig (see ``vfmtok.gpt_config``), for files, which do not bring it.

    Raises:
        ConfigError: no configuration is known.
        WeightsError: nothing is there, or the weights are of another model.
    """
    return build_gpt(read_gpt_weights(path), config)


def build_gpt(weights: GPTWeights, config: Any = None) -> nn.Module:
    """The same, of weights that were read."""
    if config is None and weights.config is None:
        raise ConfigError(f"{weights.source} does not bring its configuration: name the model (--gpt-model)")
    gpt = build_generator(config or weights.config)
    if weights.config is not None:
        copy_strictly(gpt, weights.tensors, weights.source)
    else:
        load_released(gpt, weights.tensors)
    return gpt.eval().requires_grad_(False)


def load_generator(
    path: str | Path, tokenizer: nn.Module, size: str | None, given: dict[str, Any], default_size: str | None = None
) -> tuple[nn.Module, GPTWeights]:
    """A generator, as by ``load_gpt``, of the tokens of ``tokenizer``; and what is known of its weights.

    Args:
        size: the name of its size ("GPT-B"), for files; a run's own configuration has to agree.
        given: further fields of its configuration, likewise.
        default_size: of a file whose size is not named.

    Raises:
        ConfigError: a contradiction, or a file without a size.
        WeightsError: nothing is there, or the generator learned from another tokenizer.
    """
    weights = read_gpt_weights(path, size)
    weights.check_tokenizer(tokenizer_hash(tokenizer))
    fixed = {"vocab_size": tokenizer.code.largest_codebook, "num_tokens": tokenizer.code.num_tokens}
    size = size if weights.config is not None else size or default_size
    return build_gpt(weights, gpt_config_of(weights, size, fixed | given)), weights


def gpt_config_of(weights: GPTWeights, size: str | None, given: dict[str, Any]) -> Any:
    """The GPTConfig of weights that were read.

    A run brings its own, which neither ``size`` nor a ``given`` field may contradict. A file's is that of the named
    size with the fields that are given; of codes and classes there are otherwise as many as its tensors say.

    Raises:
        ConfigError: a contradiction, or a file without a size.
    """
    if weights.config is not None:
        named = gpt_config(size) if size is not None else weights.config
        shape = {name: getattr(named, name) for name in ("n_layer", "n_head", "dim")}
        for name, value in (shape | given).items():
            own = getattr(weights.config, name, "unknown")
            if own != value:
                raise ConfigError(f"the GPT of {weights.source} has {name} {own}, not {value}")
        return weights.config
    if size is None:
        raise ConfigError(f"{weights.source} does not bring its configuration: name the model (--gpt-model)")
    shape = {}
    if "tok_embeddings.weight" in weights.tensors and "cls_embedding.embedding_table.weight" in weights.tensors:
        shape["vocab_size"] = len(weights.tensors["tok_embeddings.weight"])
        shape["num_classes"] = len(weights.tensors["cls_embedding.embedding_table.weight"]) - 1
    return gpt_config(size, **{**shape, **given})


def read_gpt_weights(path: str | Path, part: str | None = None) -> GPTWeights:
    """What ``load_gpt`` reads; ``part`` is the size ("GPT-B") that is meant of a published repository.

    Raises WeightsError.
    """
    if str(path) in PUBLISHED and part is None:
        raise WeightsError(f"{path} holds generators of several sizes: name one, such as GPT-B (--gpt-model)")
    path = _published(path, part)
    if not path.is_dir():
        return GPTWeights(*_read_file(path))
    file, config_file = checkpoint_files(path, "generator")
    config = _read_section(config_file, "generator")
    facts: dict[str, Any] = _read_facts(config_file)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # weights that were moved without it
        facts = json.loads((file.parent / "state.json").read_text(encoding="utf-8"))["numbers"]["parts"]["tokens"]
    return GPTWeights(reading.read(file), config, str(file), facts.get("classes"), facts.get("tokenizer_hash"))


def read_tokenizer_weights(path: str | Path) -> TokenizerWeights:
    """What ``load_tokenizer`` reads. Raises WeightsError."""
    path = _published(path, "tokenizer")
    if not path.is_dir():
        return TokenizerWeights(*_read_file(path))
    file, config_file = checkpoint_files(path, "tokenizer")
    return TokenizerWeights(reading.read(file), _read_section(config_file, "tokenizer"), str(file))


def read_weights(run: str | Path) -> TokenizerWeights | GPTWeights:
    """Of a run's folder or a checkpoint's, whichever kind it is of. Raises WeightsError."""
    path = Path(run).expanduser()
    if not path.is_dir():
        raise WeightsError(f"{run} is no run's folder and no checkpoint's")
    tree = _read_tree(checkpoint_files(path, "model")[1])
    of_gpt = isinstance(tree, dict) and bool(tree.keys() & {"generator", "gpt"})
    return read_gpt_weights(path) if of_gpt else read_tokenizer_weights(path)


def _published(path: str | Path, part: str | None) -> Path:
    """The path, or what a published repository of this name holds, downloaded."""
    if str(path) not in PUBLISHED or Path(path).exists():
        return Path(path).expanduser()
    published = published_file(str(path), part)
    return download.fetch(str(path), published.file, sha256=published.sha256)


def _read_file(path: Path) -> tuple[dict[str, Tensor], None, str]:
    """Tensors, no configuration, and the source, which says which of the file's state dicts was taken."""
    tensors, taken = reading.read_named(path)
    source = f"{path} ('{taken}')" if taken else str(path)
    log.info("weights of %s", source)
    return tensors, None, source


def read_config(path: str | Path) -> AnyTokenizerConfig | None:
    """The configuration that ``read_tokenizer_weights`` finds, without reading the weights."""
    if str(path) in PUBLISHED and not Path(path).exists():
        return PAPER_TOKENIZER
    path = Path(path).expanduser()
    return _read_section(checkpoint_files(path, "tokenizer")[1], "tokenizer") if path.is_dir() else None


def checkpoint_files(path: Path, what: str) -> tuple[Path, Path]:
    """The weights to use, checked, and config.yaml of a run's folder or a checkpoint's. Raises WeightsError."""
    folder = newest_checkpoint(path) if (path / "checkpoints").is_dir() else path
    files = [folder / f"{name}.safetensors" for name in ("ema", "model")]
    file = next((file for file in files if file.is_file()), None)
    if file is None or not (folder / "config.yaml").is_file():
        raise WeightsError(f"{path} holds no {what}: expected config.yaml beside model.safetensors or ema.safetensors")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # weights that were moved without state.json
        digest = json.loads((folder / "state.json").read_text(encoding="utf-8"))["files"][file.name]
        if reading.sha256(file) != digest:
            raise WeightsError(f"{file} was cut or changed: take the checkpoint before it")
    digest = _read_facts(folder / "config.yaml").get("model_sha256")
    if digest is not None and reading.sha256(file) != digest:
        raise WeightsError(f"{file} is not the one that its config.yaml was written with: it was cut or changed")
    return file, folder / "config.yaml"


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run's folder. Raises WeightsError if there is none.

    One that made way for another of its step (.old), which a killed process then left unfinished, is one too.
    """
    found = [path for path in (run / "checkpoints").iterdir() if re.fullmatch(r"step_\d+(\.old)?", path.name)]
    if not found:
        raise WeightsError(f"{run} has no finished checkpoint yet")
    return max(found, key=lambda path: (int(path.stem.removeprefix("step_")), path.suffix != ".old"))


def load_matching(model: nn.Module, weights: TokenizerWeights | GPTWeights) -> list[str]:
    """Copy every tensor that fits by name and shape, for fine-tuning, and tell all the others.

    Returns:
        lines for people: how many tensors came from the file, which begin anew, which were not used.

    Raises:
        WeightsError: nothing fits.
    """
    own, published = own_tensors(model), _published_names(model)
    tensors = {name if name in own else published.get(name, name): tensor for name, tensor in weights.tensors.items()}
    fitting = [name for name, tensor in own.items() if name in tensors and tensors[name].shape == tensor.shape]
    if not fitting:
        raise WeightsError(f"no tensor of {weights.source} fits this model")
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(tensors[name])
    new = [
        f"{name} (its shape is {tuple(own[name].shape)}, the file's {tuple(tensors[name].shape)})"
        if name in tensors
        else name
        for name in own
        if name not in fitting
    ]
    unused = [name for name in tensors if name not in own]
    lines = [f"fine-tuning from {weights.source}: {len(fitting)} of {len(own)} tensors loaded"]
    lines += [f"  begins anew: {name}" for name in new] + [f"  not used: {name}" for name in unused]
    return lines


def _published_names(model: nn.Module) -> dict[str, str]:
    """The published name -> ours, for the tensors that have one."""
    names = {}
    for name in own_tensors(model):
        with contextlib.suppress(WeightsError):  # a part that was never published
            names[rename(name, name_map(model).pairs)] = name
    return names


def _read_facts(path: Path) -> dict[str, Any]:
    """What a saved model's config.yaml says besides the configuration (see ``saving``); empty for a run's recipe."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # told where the configuration is read
    return {key: tree.get(key) for key in FACTS} if isinstance(tree, dict) and "model_sha256" in tree else {}


def _read_section(path: Path, section: Literal["tokenizer", "generator"]) -> Any:
    """The model's configuration of a recipe, or of a file that holds nothing else. Raises VFMTokError."""
    tree = _read_tree(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values at the top")
    other = tree.keys() & ({"generator", "gpt"} if section == "tokenizer" else {"tokenizer"})
    if other:
        raise WeightsError(f"{path.parent} holds no {section}: it is of another kind of run")
    if section == "tokenizer":
        return config_from_dict(tokenizer_tree(tree, (), str(path)), AnyTokenizerConfig, str(path), saved=True)
    return config_from_dict(generator_tree(tree, (), str(path)), AnyGeneratorConfig, str(path), saved=True)


def _read_tree(path: Path) -> Any:
    """Raises ConfigError."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())}") from None
