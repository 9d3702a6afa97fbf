"""Which model is it? A hash of weights and settings, which caches, checkpoints and results carry.

An identity must outlive the code that computed it: it may not change when a default does, or when a later version adds
a field. So settings are hashed as they are resolved, against values that are written down once for all. A configuration
(a dataclass) may have two class variables beside its fields:

PINNED      name -> value: a field with this value is left out. Version 0.1 left out what was at its default, and these
            are its defaults; a field that is added later is pinned at the value that stands for how models were before.
            A pinned name may also be a property, which is then hashed like a field.
UNHASHED    fields that are never hashed: they say nothing about what the model computes.

Everything else is hashed in full, so that a new family needs neither. tests/weights/identities.json keeps what was
decided, and its test fails for a field about which nothing was.
"""

import dataclasses
import hashlib
import json
from typing import Any

import torch
from torch import nn

SCHEMA = 1  # of the families that came after version 0.1; another number for another way of hashing


def tokenizer_hash(tokenizer: nn.Module) -> str:
    """``model_hash`` of a tokenizer: what token caches and generators know theirs by."""
    return model_hash(tokenizer)


def model_hash(model: nn.Module) -> str:
    """Hex SHA-256 over names, types, shapes and bytes of all tensors and the identity of ``model.config``."""
    digest = hashlib.sha256(json.dumps(identity(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def identity(config: Any) -> dict[str, Any]:
    """What is hashed of a model's configuration: plain values by name, sections as dicts."""
    found = hashed_fields(config)
    return {"schema": SCHEMA, **found} if "kind" in found else found


def hashed_fields(config: Any) -> dict[str, Any]:
    """The values of a dataclass that are neither pinned nor unhashed; sections without any are left out."""
    pinned, found = getattr(config, "PINNED", {}), {}
    for name in dict.fromkeys([*(item.name for item in dataclasses.fields(config)), *pinned]):
        value = getattr(config, name)
        if name in getattr(config, "UNHASHED", ()):
            continue
        if dataclasses.is_dataclass(value):
            value = hashed_fields(value)
            if value:
                found[name] = value
        elif name not in pinned or value != pinned[name]:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found
