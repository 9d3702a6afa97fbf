"""Which model is it? A hash of weights and settings, which caches, checkpoints and results carry."""

import dataclasses
import hashlib
import json
from typing import Any

import torch
from torch import nn


def tokenizer_hash(tokenizer: nn.Module) -> str:
    """``model_hash`` without where the encoder's weights were read from: they are among the tensors."""
    config = tokenizer.config
    encoder = dataclasses.replace(config.encoder, weights="none", weights_sha256=None)
    return model_hash(tokenizer, dataclasses.replace(config, encoder=encoder))


def model_hash(model: nn.Module, config: Any) -> str:
    """Hex SHA-256 over names, types, shapes and bytes of all tensors and what ``config``, a dataclass, changes."""
    digest = hashlib.sha256(json.dumps(_changed_from_defaults(config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _changed_from_defaults(config: Any) -> dict[str, Any]:
    """The fields that are not at their defaults, as plain values by name, sections as dicts.

    What identifies a model: a field that a later version adds, at its default, changes nothing.
    """
    changed = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            value = _changed_from_defaults(value)
            if value:
                changed[item.name] = value
        elif value != item.default:
            changed[item.name] = list(value) if isinstance(value, tuple) else value
    return changed
