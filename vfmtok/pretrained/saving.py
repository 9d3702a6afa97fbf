"""Models to folders and to the Hub, in the form that ``from_pretrained`` opens.

model.safetensors   the weights under our names, without a frozen encoder's
config.yaml         the resolved configuration in a section tokenizer: or generator:; the weights' SHA-256;
                    of a generator the classes, the tokenizer's hash
README.md           the model card: what it is, and its numbers with their protocols
"""

import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from torch import nn

from vfmtok.config import dump_config
from vfmtok.encoders.config import EncoderConfig
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.files import replacing
from vfmtok.pretrained.loading import build, read_weights
from vfmtok.pretrained.model_card import Metrics, read_metrics, write_card
from vfmtok.pretrained.names import CONFIG_FILE, FOLDERS, MODEL_FILE
from vfmtok.pretrained.published import Section
from vfmtok.weights import reading
from vfmtok.weights.download import endpoint, reason
from vfmtok.weights.name_maps import own_tensors

CARD_FILE = "README.md"
# Of an encoder's weights; anything else is a path on this machine.
_SOURCES = ("none", "random", "hub", "package", "auto")


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    metrics: Metrics | Sequence[Metrics] | None = None,
    classes: Sequence[str] | None = None,
    tokenizer_hash: str | None = None,
    name: str | None = None,
) -> Path:
    """Write a tokenizer or a generator; ``from_pretrained(folder)`` gives back exactly this model.

    A frozen encoder is left out: its configuration says where it comes from and which hash its file has. A path of this
    machine is written as "auto" (``init_models/``, else the Hub), the hash kept.

    Args:
        metrics: the results.json of vqgan_test.py or test_net.py, their content, or several of either, for the card.
        classes: of a generator, the names by label.
        tokenizer_hash: of a generator: ``vfmtok.weights.hashing.tokenizer_hash`` of the tokenizer whose code it makes.
        name: the title of the card and what it is opened by (default: the folder's name).

    Returns:
        the folder.

    Raises:
        ConfigError: not a model of ours, metrics without protocol, or the folder can't be written; every file is there
            complete or not at all.
    """
    folder = Path(folder).expanduser()
    section = _section(model)
    if section == "tokenizer" and (classes is not None or tokenizer_hash is not None):
        raise ConfigError("classes and tokenizer_hash belong to a generator, not to a tokenizer")
    if classes is not None and len(classes) != model.num_classes:
        raise ConfigError(f"{len(classes)} names for the {model.num_classes} classes of the generator")
    results = read_metrics(metrics)
    config = _shareable(model.config)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own_tensors(model).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None
    _replace(folder / MODEL_FILE, lambda part: safetensors.torch.save_file(tensors, part, {"format": "pt"}))
    digest = reading.sha256(folder / MODEL_FILE)
    facts = {"model_sha256": digest}
    if section == "generator":
        facts |= {"classes": list(classes) if classes is not None else None, "tokenizer_hash": tokenizer_hash}
    text = _config_text(section, config, facts)
    _replace(folder / CONFIG_FILE, lambda part: part.write_text(text, encoding="utf-8"))
    card = write_card(name or folder.resolve().name, section, _facts(model, section, config, facts), results)
    _replace(folder / CARD_FILE, lambda part: part.write_text(card, encoding="utf-8"))
    return folder


def save_run(run: str | Path, folder: str | Path, metrics: Metrics | Sequence[Metrics] | None = None) -> Path:
    """``save_pretrained`` of a training run's newest checkpoint, its average where there is one; of a tokenizer's run
    or a generator's, with the classes and the tokenizer's hash that the run knows.

    Raises VFMTokError.
    """
    weights = read_weights(run)
    known = {"classes": weights.classes, "tokenizer_hash": weights.tokenizer_hash}
    return save_pretrained(build(weights), folder, metrics=metrics, **known)


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    metrics: Metrics | Sequence[Metrics] | None = None,
    classes: Sequence[str] | None = None,
    tokenizer_hash: str | None = None,
    part: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "Model, configuration and card written by vfmtok",
) -> str:
    """``save_pretrained`` into a repository of the Hub, which is made if it is not there; needs HF_TOKEN or a login.

    Args:
        repository: "owner/name".
        part: None puts the model at the top; "tokenizer" or "generator" into a folder of that name, so that one
            repository holds both ("gpt" is version 0.1's name of the latter).

    Returns:
        the address of the commit.

    Raises:
        ConfigError: as ``save_pretrained``. WeightsError: the Hub refuses or can't be reached.
    """
    import huggingface_hub

    if part not in (None, *FOLDERS["tokenizer"], *FOLDERS["generator"]):
        raise ConfigError(f"part must be 'tokenizer', 'generator' or None, not '{part}'")
    with tempfile.TemporaryDirectory() as place:
        save_pretrained(model, place, metrics=metrics, classes=classes, tokenizer_hash=tokenizer_hash, name=repository)
        hub = huggingface_hub.HfApi(endpoint=endpoint())
        try:
            hub.create_repo(repository, private=private, exist_ok=True)
            done = hub.upload_folder(
                repo_id=repository, folder_path=place, path_in_repo=part, revision=revision, commit_message=message
            )
        except Exception as error:  # requests, httpx, OS and Hub errors differ between versions
            raise WeightsError(f"cannot push to {repository} at {endpoint()}: {reason(error)}") from None
    return str(done.commit_url)


def _section(model: nn.Module) -> Section:
    """Which of the two a model is, by its contract. Raises ConfigError."""
    if hasattr(model, "encode") and hasattr(model, "decode"):
        return "tokenizer"
    if hasattr(model, "null_class"):
        return "generator"
    raise ConfigError(f"a {type(model).__name__} is neither a tokenizer nor a generator: it can't be saved like one")


def _shareable(config: Any) -> Any:
    """The resolved configuration, with no path of this machine in it."""
    changes = {}
    for name in (field.name for field in dataclasses.fields(config)):
        encoder = getattr(config, name)
        if not isinstance(encoder, EncoderConfig):  # one of another kind is trained, and saved with the rest
            continue
        if encoder.frozen and encoder.starts_random:
            warnings.warn(
                f"the frozen {name} is not saved, and its configuration does not say where its weights come from: who "
                f"opens this model must set {name}.weights",
                stacklevel=3,
            )
        if encoder.weights not in _SOURCES:
            changes[name] = dataclasses.replace(encoder, weights="auto")
    return dataclasses.replace(config, **changes)


def _config_text(section: Section, config: Any, facts: dict[str, Any]) -> str:
    body = "".join(f"  {line}\n" for line in dump_config(config).splitlines())
    return f"{section}:\n{body}" + yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)


def _facts(model: nn.Module, section: Section, config: Any, facts: dict[str, Any]) -> dict[str, str]:
    """What the card says."""
    own = own_tensors(model)
    count = sum(parameter.numel() for name, parameter in model.named_parameters() if name in own)
    left_out = " and ".join(model.frozen_parts) if section == "tokenizer" else ""
    said = {"kind": config.kind, "parameters": f"{count:,}" + (f" without the frozen {left_out}" if left_out else "")}
    if section == "tokenizer":
        encoder = getattr(config, "encoder", None)
        if hasattr(encoder, "weights"):
            levels = list(encoder.levels or ())
            said["encoder"] = f"{encoder.name} at {encoder.image_size} px, levels {levels}"
            source = f"{encoder.weights}, SHA-256 {encoder.weights_sha256 or 'not recorded'}"
            where = "not here; from their publisher: " if encoder.frozen else "here; trained, from "
            said["encoder's weights"] = where + source
        said["image"] = f"{config.image_size} px"
        said["code"] = str(model.code)
    else:
        sizes = ((name, getattr(config, name)) for name in (field.name for field in dataclasses.fields(config)))
        said["shape"] = ", ".join(f"{name} {value}" for name, value in sizes if type(value) is int)
        said["code"] = str(model.code)
        said["classes"] = f"{model.num_classes:,}" + ("" if facts["classes"] is None else ", by name in config.yaml")
        said["tokenizer"] = f"hash {facts['tokenizer_hash'] or 'not recorded'}"
    return {**said, MODEL_FILE: f"SHA-256 {facts['model_sha256']}"}


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file that becomes ``path`` when it is complete. Raises ConfigError."""
    try:
        with replacing(path) as part:
            write(part)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"cannot write {path}: {error}") from None
