"""What the commands share that make one picture of images that a person names.

Shapes: n images, S side.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vfmtok.errors import ConfigError, DataError
from vfmtok.evaluation.given_images import find_image_files, read_crops
from vfmtok.sources.scratch import Scratch

MOST = 64  # images of one picture


def picture_path(text: str) -> Path:
    """Where a picture is to be written. Raises ConfigError if it can't be."""
    out = Path(text).expanduser()
    if not out.parent.is_dir() or out.suffix.lower() not in Image.registered_extensions():
        raise ConfigError(f"cannot write {out}: its folder has to be there, and its name to end as .png, say")
    return out


def open_crops(paths: Sequence[str], size: int, out: Path) -> Tensor:
    """The evaluation crops of image files and folders: (n,3,S,S) uint8.

    Raises:
        ConfigError: the picture ``out`` would replace one of them.
        DataError: one is not there or can't be read, or they are too many.
    """
    named = [Path(path).expanduser() for path in paths]
    if any(path.resolve() == out.resolve() for path in named):
        raise ConfigError(f"--out {out} is one of the images")
    with Scratch(out.parent) as scratch:
        files = find_image_files(named, scratch)
        if len(files) > MOST:
            raise DataError(f"{len(files)} images are more than one picture shows ({MOST})")
        crops = read_crops(files, size)
    for file, crop in zip(files, crops, strict=True):
        if isinstance(crop, str):
            raise DataError(f"cannot read {file.name}: {crop}")
    return torch.stack(crops)


def save(picture: Image.Image, out: Path) -> None:
    """Raises ConfigError if the disk is full, say."""
    try:
        picture.save(out)
    except (OSError, ValueError, KeyError) as error:  # a format that Pillow only reads
        raise ConfigError(f"cannot write {out}: {error}") from None
