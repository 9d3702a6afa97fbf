"""How a cache of codes lies on the disk.

    ids.npy            (N,V,K) uint16, or uint32 for codebooks of more than 65,536 codes
    or latents.npy     (N,V,M,C,h,w) float16 or float32; M is 1, or 2: mean and standard deviation of a posterior
    labels.npy         (N,) int64
    stats.safetensors  of latents: their mean and standard deviation (latent_statistics.py)
    cache.json         of which tokenizer, views and dataset, and whether it is complete
    progress.bin       N bytes while it is being written: 0 to do, 1 done, 2 done with the next good record

Shapes: N records, V views of each, K tokens.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vfmtok.code import Code, Ids, Latents, Segment, code_from_dict, square_grid
from vfmtok.errors import DataError
from vfmtok.files import replacing

VERSION = 1
LATENT_DTYPES = ("float16", "float32")

# What makes codes what they are: a cache is continued, or found to be there already, only if all are equal.
_COMMON = ("version", "tokenizer_hash", "dataset_fingerprint", "num_samples", "views", "seed", "image_size")
_OF_IDS = (*_COMMON, "num_tokens", "codebook_size", "precision")
_OF_LATENTS = (*_COMMON, "code", "posterior", "latent_dtype", "precision")


@dataclass(frozen=True)
class Rows:
    """The array of a cache.

    Attributes:
        file: its name.
        shape: of a record: (V,K) of ids, (V,M,C,h,w) of latents.
        dtype: of its numbers.
    """

    file: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, metadata: dict[str, Any]) -> "Rows":
        """As cache.json says."""
        code, views = code_in(metadata), len(metadata["views"])
        if isinstance(code, Latents):
            parts = 2 if metadata["posterior"] == "moments" else 1
            return cls("latents.npy", (views, parts, *code.shape), np.dtype(metadata["latent_dtype"]))
        dtype = np.dtype(np.uint16 if metadata["codebook_size"] <= 2**16 else np.uint32)
        return cls("ids.npy", (views, code.num_tokens), dtype)


def code_in(metadata: dict[str, Any]) -> Code:
    """What the rows of a cache are. Version 0.1 wrote only how many tokens of how many codes there are."""
    if "code" in metadata:
        return code_from_dict(metadata["code"])
    tokens = metadata["num_tokens"]
    return Ids((Segment(tokens, metadata["codebook_size"], square_grid(tokens)),))


def named(metadata: dict[str, Any]) -> str:
    """For messages."""
    return "latent cache" if _is_of_latents(metadata) else "token cache"


def identity(metadata: dict[str, Any]) -> tuple[str, ...]:
    """The fields that make its codes what they are."""
    return _OF_LATENTS if _is_of_latents(metadata) else _OF_IDS


def _is_of_latents(metadata: dict[str, Any]) -> bool:
    return isinstance(metadata.get("code"), dict) and "latents" in metadata["code"]


# --------------------------------------------------------------------------------------
# cache.json
# --------------------------------------------------------------------------------------


def read_metadata(path: Path) -> dict[str, Any]:
    """Raises DataError: no cache is there, or its cache.json is damaged or another version's."""
    try:
        metadata = json.loads((path / "cache.json").read_text(encoding="utf-8"))
    except OSError as error:
        if path.name.endswith("_codes") or any(path.glob("*_codes")):
            raise DataError(f"{path} holds LlamaGen's code files: make a cache of them (vfmtok import-codes)") from None
        if any(path.glob("*.safetensors")) or (path / "vae_latents").is_dir():
            raise DataError(f"{path} holds latents of another program: make a cache (vfmtok import-codes)") from None
        raise DataError(f"no token cache at {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"damaged {path / 'cache.json'}: {error}") from None
    if not isinstance(metadata, dict):
        raise DataError(f"damaged {path / 'cache.json'}: it holds no object")
    missing = [key for key in (*identity(metadata), "classes", "complete") if key not in metadata]
    if missing:
        raise DataError(f"{path / 'cache.json'} lacks '{missing[0]}'")
    if metadata["version"] != VERSION:
        raise DataError(f"{path} is a token cache of version {metadata['version']}; this program reads {VERSION}")
    if _is_of_latents(metadata) and metadata["latent_dtype"] not in LATENT_DTYPES:
        raise DataError(f"{path / 'cache.json'} says latents are {metadata['latent_dtype']}, not {LATENT_DTYPES}")
    return metadata


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Complete or not at all. Raises DataError."""
    try:
        with replacing(path / "cache.json") as part:
            part.write_text(json.dumps(metadata, indent=1), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path / 'cache.json'}: {error.strerror}") from None


# --------------------------------------------------------------------------------------
# Arrays
# --------------------------------------------------------------------------------------


def open_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """A mapped .npy. Raises DataError: it is damaged, or not what cache.json says."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if array.shape != shape or array.dtype != dtype:
        raise DataError(f"{path} holds {array.shape} {array.dtype}, its cache.json says {shape} {np.dtype(dtype)}")
    return array


def make_array(path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    """An empty .npy whose disk blocks are claimed, so that a full disk shows before the work. Raises OSError."""
    np.lib.format.open_memmap(path, "w+", dtype, shape).flush()
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def write_all(file: int, data: bytes, position: int) -> None:
    """All bytes to a place in an open file. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, position)
        view, position = view[written:], position + written
