"""The picture of where a tokenizer's tokens read an image, for the families that read at points (tokenizers/contract).

Shapes: n images.
"""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from vfmtok.code import Code, Ids
from vfmtok.errors import ConfigError
from vfmtok.pictures.sampling_points import VIEW, chosen_tokens, draw_sampling_points
from vfmtok.tokenizers.contract import Tokenizer, to_pixels


def has_sampling_points(tokenizer: Tokenizer) -> bool:
    return getattr(tokenizer, "has_sampling_points", False)


def check_tokens(tokenizer: Tokenizer, tokens: Sequence[int] | None, flag: str) -> None:
    """Raise ConfigError unless points of these tokens (None: of four) can be drawn; ``flag`` asked for them."""
    if not has_sampling_points(tokenizer):
        raise ConfigError(f"{flag}: the tokens of this tokenizer have no sampling points")
    chosen_tokens(*_places(tokenizer.code), tokens)


def picture_of_points(tokenizer: Tokenizer, images: Tensor, tokens: Sequence[int] | None = None) -> Image.Image | None:
    """Of images (n,3,H,W) in [-1,1]; None where tokens have no points. Raises ConfigError for tokens there are not."""
    if not has_sampling_points(tokenizer):
        return None
    tokens = chosen_tokens(*_places(tokenizer.code), tokens)
    return draw_sampling_points(to_pixels(images, VIEW).cpu().numpy(), tokenizer.sampling_points(images), tokens)


def _places(code: Code) -> tuple[int, tuple[int, int] | None]:
    """How many tokens have points, those of the first segment, and the grid on which they lie."""
    if isinstance(code, Ids):
        return code.segments[0].count, code.segments[0].grid
    height, width = code.shape[1:]
    return height * width, (height, width)
