"""timm models with shapes but no storage, so that the giants can be looked at on a small machine."""

import functools
from unittest import mock

import timm
import torch

create_with_storage = timm.create_model


def create_model(name: str, **options) -> torch.nn.Module:
    # Older timm reads numbers off torch.linspace while building, which the meta device can't give.
    with torch.device("meta"), mock.patch("torch.linspace", functools.partial(torch.linspace, device="cpu")):
        return create_with_storage(name, **options)
