import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from vfmtok.data import transforms
from vfmtok.data.image_files import NotAnImage, open_image, reencode
from vfmtok.data.transforms import decode_rgb
from vfmtok.errors import DataError

RAMP = np.linspace(0, 1, 32 * 48).reshape(32, 48)
RED = Image.new("RGB", (48, 32), (200, 0, 0))


def _with_alpha(mode: str) -> Image.Image:
    image = RED.convert(mode)
    image.putalpha(Image.fromarray((RAMP * 255).astype(np.uint8)))
    return image


IMAGES = {
    "alpha": (_with_alpha("RGBA"), "PNG", {}),
    "grey alpha": (_with_alpha("LA"), "PNG", {}),
    "palette": (RED.quantize(4), "GIF", {"transparency": 0}),
    "transparent colour": (RED, "PNG", {"transparency": (200, 0, 0)}),
    "transparent grey": (RED.convert("L"), "PNG", {"transparency": RED.convert("L").getpixel((0, 0))}),
    "16 bit": (Image.fromarray((RAMP * 65535).astype(np.uint16)), "PNG", {}),
    "integers": (Image.fromarray((RAMP * 65535).astype(np.int32)), "TIFF", {}),
    "float to 1": (Image.fromarray(RAMP.astype(np.float32)), "TIFF", {}),
    "float to 255": (Image.fromarray((RAMP * 255).astype(np.float32)), "TIFF", {}),
    "bilevel": (Image.fromarray(RAMP > 0.5), "PNG", {}),
    "cmyk": (RED.convert("CMYK"), "JPEG", {}),
}


@pytest.mark.parametrize("target", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("name", IMAGES)
def test_reencoding_keeps_what_training_sees(name, target):
    image, source_format, options = IMAGES[name]
    buffer = io.BytesIO()
    image.save(buffer, source_format, **options)
    again = reencode(open_image(buffer.getvalue()), buffer.getvalue(), None, target)
    before, after = (np.asarray(decode_rgb(open_image(data)), float) for data in (buffer.getvalue(), again))
    assert np.abs(before - after).max() <= {"png": 0, "jpeg": 16, "webp": 24}[target]
    assert np.abs(before - after).mean() <= {"png": 0, "jpeg": 2, "webp": 3}[target]


def test_alpha_stays_where_the_format_holds_it():
    buffer = io.BytesIO()
    _with_alpha("RGBA").save(buffer, "PNG")
    for target, mode in (("webp", "RGBA"), ("jpeg", "RGB")):
        assert open_image(reencode(open_image(buffer.getvalue()), buffer.getvalue(), 16, target)).mode == mode


def test_there_is_one_way_to_open_an_image():
    assert transforms.open_image is open_image
    for content in (b"", b"no image"):
        with pytest.raises(DataError) as caught:  # what the loader counts and prepare reports
            open_image(content, decode=False)
        assert type(caught.value) is NotAnImage


def test_what_is_no_image_is_said_in_words():
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    if importlib.util.find_spec("pillow_heif") is None:
        with pytest.raises(NotAnImage, match="pip install pillow-heif"):
            open_image(heic)
    for content, words in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"\xff\x0a" + bytes(9), "JPEG XL"),
        (b"whatever", "not an image, or of an unsupported format"),
    ):
        with pytest.raises(NotAnImage, match=words):
            open_image(content)


def test_heic_is_read_where_pillow_heif_is_there():
    pillow_heif = pytest.importorskip("pillow_heif")
    heif, buffer = pillow_heif.from_pillow(RED), io.BytesIO()
    heif.save(buffer, quality=90)
    pixels = np.asarray(decode_rgb(open_image(buffer.getvalue())), float)
    assert pixels.shape == (32, 48, 3) and np.abs(pixels - (200, 0, 0)).mean() < 8
