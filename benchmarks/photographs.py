"""Real photographs for tests and benchmarks: those that scikit-image and scikit-learn ship."""

import io
from pathlib import Path

from PIL import Image

_SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg")
_SKLEARN = ("china.jpg", "flower.jpg")


def photographs() -> list[Image.Image]:
    """Eight RGB photographs, 451x300 to 1411x1411."""
    import skimage
    import sklearn

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets/images")
    paths = [folders[0] / name for name in _SKIMAGE] + [folders[1] / name for name in _SKLEARN]
    return [Image.open(path).convert("RGB") for path in paths]


def jpeg(image: Image.Image, quality: int = 92, subsampling: int = 2, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, **options)
    return buffer.getvalue()
