"""In-painting of whole images: a part is hidden, and a generator draws it again, several times.

Shapes: B batch, n images, N completions of each, K tokens, S side, h, w the grid of the tokens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vfmtok.data.image_files import as_rgb, open_image
from vfmtok.errors import ConfigError, DataError
from vfmtok.generators.contract import Generator
from vfmtok.generators.inpainting import inpaint
from vfmtok.layers.precision import full_float32
from vfmtok.tokenizers.contract import Tokenizer, to_pixels
from vfmtok.tokenizers.editing import kept_tokens, without_region

WHITE = 128  # grey values from here on are white


@dataclass(frozen=True)
class Completions:
    """
    Attributes:
        given: (n,S,S,3) uint8, the images with the hidden part mid-grey, as they are encoded.
        drawn: (n,N,S,S,3) uint8.
        kept: how many of the K tokens are the images' own.
    """

    given: Tensor
    drawn: Tensor
    kept: int


@torch.no_grad()
def complete(
    tokenizer: Tokenizer,
    generator: Generator,
    images: Tensor,
    redrawn: Tensor,
    label: int,
    count: int,
    *,
    batch: int = 16,
    seed: int = 0,
    **sampling: Any,
) -> Completions:
    """``count`` completions of each image, decoded in float32. Completion j of image i is sample ``i * count + j`` of
    the seed, whatever the batch.

    Args:
        images: (n,3,S,S) in [-1,1] on the models' device.
        redrawn: (h,w) bool, the cells of the tokens' grid that are hidden and drawn again.
        label: the class of all images; ``generator.null_class`` for none.
        batch: images of one pass.
        sampling: settings of ``generator.sample``.

    Raises:
        ConfigError: no cell is to be redrawn; the generator can't draw these tokens last; a setting is impossible.
    """
    if not redrawn.any():
        raise ConfigError("no token is to be redrawn: the part is too small, or the mask is black")
    size, code, device = tokenizer.config.image_size, tokenizer.code, images.device
    kept = kept_tokens(code, redrawn).to(device)  # (K,)
    given = without_region(images, redrawn)  # (n,3,S,S)
    with full_float32(device.type):
        ids = torch.cat([tokenizer.encode(part).ids for part in given.split(batch)])  # (n,K)
        drawn = []
        for samples in torch.arange(len(ids) * count).split(batch):
            known = ids[samples.to(device) // count]  # (B,K)
            labels = torch.full((len(known),), label, device=device)
            settings = {**sampling, "seed": seed, "sample_indices": samples}
            made = inpaint(generator, known, kept, labels, **settings)  # (B,K)
            drawn.append(tokenizer.decode_to_uint8(made, size))  # (B,S,S,3)
    return Completions(to_pixels(given, size), torch.cat(drawn).unflatten(0, (len(ids), count)), int(kept.sum()))


def read_mask(path: str | Path, size: int, grid: tuple[int, int]) -> Tensor:
    """(h,w) bool of a black and white picture: the cells of the grid with any white in them, which are to be redrawn.

    Args:
        size: S. The mask is S x S px, as the images are cut, or has one px for each cell.

    Raises:
        DataError: the file can't be read. ConfigError: it is of another size, or all black.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    try:
        picture = as_rgb(open_image(content)).convert("L")
    except DataError as error:
        raise DataError(f"cannot read {path}: {error}") from None
    height, width = grid
    if picture.size not in ((size, size), (width, height)):
        raise ConfigError(
            f"the mask {path} is {picture.width}x{picture.height} px: it must be {size}x{size}, as the images are cut, "
            f"or {width}x{height}, one px for each token"
        )
    white = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) >= WHITE
    white = white.view(1, picture.height, picture.width).float()
    redrawn = torch.nn.functional.adaptive_max_pool2d(white, (height, width))[0] > 0  # (h,w)
    if not redrawn.any():
        raise ConfigError(f"the mask {path} is all black: what is white is redrawn")
    return redrawn
