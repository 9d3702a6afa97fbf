"""Weights and inputs of the golden data: drawn by a rule from names, so that none need be shipped."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
TABLE_WORDS = ("embedding", "embed.", "token", "pos", "mask", "carrier")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as archive:
        return dict(archive)


def shapes(name: str) -> dict[str, list[int]]:
    return json.loads((GOLDEN / name).read_text())


def weights(keys: str, prefix: str = "") -> dict[str, Tensor]:
    """The state dict whose names and shapes are in ``keys``; ``prefix`` goes before the seeding name."""
    return {name: tensor_for(prefix + name, shape) for name, shape in shapes(keys).items()}


def tokenizer_weights() -> dict[str, Tensor]:
    state_dict = weights("tokenizer_keys.json")
    state_dict["slot_quantize.codebook_used"].zero_()
    return state_dict


def dinov2_weights() -> dict[str, Tensor]:
    state_dict = weights("dinov2_vitl14_reg4_keys.json", "dinov2.")
    return {name: tensor.fill_(0.3) if name.endswith(".gamma") else tensor for name, tensor in state_dict.items()}


def tensor_for(name: str, shape) -> Tensor:
    """Standard normals seeded by the name's CRC-32, scaled by what the name says the tensor is."""
    shape = tuple(shape)
    normal = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape, dtype=np.float32)
    leaf = name.rpartition(".")[2]
    if not shape:
        value = normal
    elif len(shape) == 1 and leaf in ("weight", "gamma", "scale", "weight_orig"):
        value = 1.0 + 0.1 * normal
    elif len(shape) == 1:
        value = 0.05 * normal
    elif (
        (shape[0] == 1 or any(word in name for word in TABLE_WORDS))
        and "patch_embed" not in name
        and "proj" not in leaf
    ):
        value = 0.5 * normal
    else:
        value = normal / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def image_for(case: str, batch: int, size: int) -> Tensor:
    """Sums of six waves per channel: float32 (batch,3,size,size) in [-1,1]."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(case.encode())))
    y, x = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing="ij")
    out = np.zeros((batch * 3, size, size))
    for channel in out:
        for _ in range(6):
            fy, fx = rng.uniform(0.5, 12.0, 2)
            phase, amplitude = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.5)
            channel += amplitude * np.sin(2 * np.pi * (fy * y + fx * x) + phase)
    return torch.from_numpy(np.clip(out, -1.0, 1.0).astype(np.float32).reshape(batch, 3, size, size))
