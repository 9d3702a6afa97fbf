"""Models to folders and to the Hub, in the form that ``from_pretrained`` opens.

model.safetensors   the weights under our names, without a frozen encoder's
config.yaml         the resolved configuration, the weights' SHA-256; of a GPT the classes, the tokenizer's hash
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

from vfmtok.config import config_to_dict, dump_config
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.files import replacing
from vfmtok.pretrained import loading as pretrained
from vfmtok.pretrained.model_card import Metrics, read_metrics, write_card
from vfmtok.pretrained.names import CONFIG_FILE, MODEL_FILE
from vfmtok.weights import reading
from vfmtok.weights.download import endpoint, reason
from vfmtok.weights.name_maps import own_tensors

CARD_FILE = "README.md"
_SOURCES = ("none", "hub", "package", "auto")  # of an encoder's weights; anything else is a path on this machine


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    metrics: Metrics | Sequence[Metrics] | None = None,
    classes: Sequence[str] | None = None,
    tokenizer_hash: str | None = None,
    name: str | None = None,
) -> Path:
    """Write a VFMTok or a GPT; ``from_pretrained(folder)`` gives back exactly this model.

    A frozen encoder is left out: its configuration says where it comes from and which hash its file has. A path of this
    machine is written as "auto" (``init_models/``, else the Hub), the hash kept.

    Args:
        metrics: the results.json of vqgan_test.py or test_net.py, their content, or several of either, for the card.
        classes: of a GPT, the names by label.
        tokenizer_hash: of a GPT, of the tokenizer whose ids it makes (``vfmtok.weights.hashing.tokenizer_hash``).
        name: the title of the card and what it is opened by (default: the folder's name).

    Returns:
        the folder.

    Raises:
        ConfigError: not a model of ours, metrics without protocol, or the folder can't be written; every file is there
            complete or not at all.
    """
    folder = Path(folder).expanduser()
    kind = "tokenizer" if hasattr(model, "encode") else "gpt" if hasattr(model, "null_class") else None
    if kind is None:
        raise ConfigError(f"a {type(model).__name__} is neither a VFMTok nor a GPT: it can't be saved like one")
    if kind == "tokenizer" and (classes is not None or tokenizer_hash is not None):
        raise ConfigError("classes and tokenizer_hash belong to a GPT, not to a tokenizer")
    if classes is not None and len(classes) != model.config.num_classes:
        raise ConfigError(f"{len(classes)} names for the {model.config.num_classes} classes of the GPT")
    results = read_metrics(metrics)
    config = _shareable(model) if kind == "tokenizer" else model.config
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own_tensors(model).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None
    _replace(folder / MODEL_FILE, lambda part: safetensors.torch.save_file(tensors, part, {"format": "pt"}))
    digest = reading.sha256(folder / MODEL_FILE)
    facts = {"model_sha256": digest}
    if kind == "gpt":
        facts |= {"classes": list(classes) if classes is not None else None, "tokenizer_hash": tokenizer_hash}
    text = _config_text(kind, config, facts)
    _replace(folder / CONFIG_FILE, lambda part: part.write_text(text, encoding="utf-8"))
    card = write_card(name or folder.resolve().name, kind, _facts(model, kind, config, facts), results)
    _replace(folder / CARD_FILE, lambda part: part.write_text(card, encoding="utf-8"))
    return folder


def save_run(run: str | Path, folder: str | Path, metrics: Metrics | Sequence[Metrics] | None = None) -> Path:
    """``save_pretrained`` of a training run's newest checkpoint, its average where there is one; of a tokenizer's run
    or a generator's, with the classes and the tokenizer's hash that the run knows.

    Raises VFMTokError.
    """
    weights = pretrained.read_weights(run)
    if isinstance(weights, pretrained.TokenizerWeights):
        return save_pretrained(pretrained.load_tokenizer(run), folder, metrics=metrics)
    facts = {"classes": weights.classes, "tokenizer_hash": weights.tokenizer_hash}
    return save_pretrained(pretrained.build_gpt(weights), folder, metrics=metrics, **facts)


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
        part: None puts the model at the top; "tokenizer" or "gpt" into a folder of that name, so that one repository
            holds both.

    Returns:
        the address of the commit.

    Raises:
        ConfigError: as ``save_pretrained``. WeightsError: the Hub refuses or can't be reached.
    """
    import huggingface_hub

    if part not in (None, "tokenizer", "gpt"):
        raise ConfigError(f"part must be 'tokenizer', 'gpt' or None, not '{part}'")
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


def _shareable(tokenizer: nn.Module) -> Any:
    """The resolved configuration, with no path of this machine in it."""
    config = tokenizer.config
    if config.encoder.frozen and config.encoder.weights == "none":
        warnings.warn(
            "the frozen encoder is not saved, and its configuration does not say where its weights come from: who "
            "opens this model must set encoder.weights",
            stacklevel=3,
        )
    if config.encoder.weights in _SOURCES:
        return config
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, weights="auto"))


def _config_text(kind: str, config: Any, facts: dict[str, Any]) -> str:
    body = "".join(f"  {line}\n" for line in dump_config(config).splitlines())
    return f"{kind}:\n{body}" + yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)


def _facts(model: nn.Module, kind: str, config: Any, facts: dict[str, Any]) -> dict[str, str]:
    """What the card says."""
    own = own_tensors(model)
    count = sum(parameter.numel() for name, parameter in model.named_parameters() if name in own)
    frozen = getattr(model, "frozen_parts", ())
    said = {"parameters": f"{count:,}" + (" without the frozen encoder" if frozen else "")}
    tree = config_to_dict(config)
    if kind == "tokenizer":
        encoder = tree["encoder"]
        said["encoder"] = f"{encoder['name']} at {encoder['image_size']} px, levels {encoder['levels']}"
        said["encoder's weights"] = f"{encoder['weights']}, SHA-256 {encoder['weights_sha256'] or 'not recorded'}"
        said["image"] = f"{config.image_size} px, {config.code.num_tokens} tokens"
        said["codebook"] = f"{config.code.largest_codebook:,} codes of {config.quantizer.code_dim} dimensions"
    else:
        said["shape"] = f"{config.n_layer} layers, {config.n_head} heads, width {config.dim}"
        said["tokens"] = f"{config.num_tokens} of {config.vocab_size:,} codes"
        said["classes"] = f"{config.num_classes:,}" + ("" if facts["classes"] is None else ", by name in config.yaml")
        said["tokenizer"] = f"hash {facts['tokenizer_hash'] or 'not recorded'}"
    return {**said, MODEL_FILE: f"SHA-256 {facts['model_sha256']}"}


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file that becomes ``path`` when it is complete. Raises ConfigError."""
    try:
        with replacing(path) as part:
            write(part)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"cannot write {path}: {error}") from None
