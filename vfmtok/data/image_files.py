"""Encoded images: which formats come in, whether one really decodes, and re-encoding on request."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from vfmtok.errors import DataError

Image.init()
# Named, because Pillow would also hand EPS files to an external program.
FORMATS = tuple(
    name
    for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
    if name in Image.OPEN
)
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif"}  # others: the name in lower case
QUALITY = 95  # of JPEG and WebP written by --resize and --format


_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_KNOWN = {  # what files that Pillow can't open begin with, and what to do about them
    b"version https://git-lfs": "a pointer of Git LFS, not the image: `git lfs pull` fetches it",
    b"/annex/objects/": "a pointer of git-annex, not the image: `git annex get` fetches it",
    b"<!DOCTYPE html": "a web page, not an image",
    b"<html": "a web page, not an image",
    b"<svg": "an SVG drawing, which has no pixels",
    b"\xff\x0a": "a JPEG XL image, which Pillow can't read",
    b"\0\0\0\x0cJXL ": "a JPEG XL image, which Pillow can't read",
    b"8BPS": "a Photoshop document",
}


class NotAnImage(DataError):
    """Bytes that don't decode; the text is the reason."""


@contextmanager
def reasons(what: str) -> Iterator[None]:
    """Turn what decoders and encoders raise, which is nearly anything, into NotAnImage: ``what``, and why."""
    try:
        yield
    except NotAnImage:
        raise
    except Image.UnidentifiedImageError:
        raise NotAnImage("not an image, or of an unsupported format") from None
    except Exception as error:
        text = str(error).strip()
        raise NotAnImage(f"{what}: {text.splitlines()[0] if text else type(error).__name__}") from None


def open_image(content: bytes, decode: bool = True) -> Image.Image:
    """Open an image and decode its first frame. Raises NotAnImage; without ``decode`` only the header can."""
    if not content:
        raise NotAnImage("empty file")
    with reasons("does not decode"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF and very large images are no news here
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.UnidentifiedImageError:
            image = _open_other(content)
        if decode:
            image.load()
    return image


def _open_other(content: bytes) -> Image.Image:
    """A HEIC image, which pillow-heif opens where it is installed. Raises NotAnImage in words for what is known."""
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF:
        try:
            import pillow_heif
        except ImportError:
            raise NotAnImage("a HEIC image, which needs pillow-heif: pip install pillow-heif") from None
        pillow_heif.register_heif_opener()
        return Image.open(io.BytesIO(content), formats=["HEIF"])
    if content[4:12] == b"ftypavif":
        raise NotAnImage("an AVIF image, which needs a newer Pillow: pip install -U 'pillow>=11.3'")
    known = next((words for start, words in _KNOWN.items() if content.startswith(start)), None)
    raise NotAnImage(known or "not an image, or of an unsupported format")


def suffix_of(image: Image.Image) -> str:
    """The usual file extension of an opened image's format."""
    return SUFFIXES.get(image.format, f".{image.format.lower()}")


def matches_suffix(image: Image.Image, suffix: str) -> bool:
    """Whether a file extension, such as ".JPEG", is one of an opened image's format."""
    formats = Image.registered_extensions()
    return formats.get(suffix.lower()) == formats.get(suffix_of(image))


def reencode(image: Image.Image, content: bytes, short_side: int | None, target: str | None) -> bytes:
    """The image with its short side reduced to ``short_side`` and in the format ``target``.

    Bytes that are already small enough and of that format stay as they are; nothing is enlarged. The
    format stays if it is JPEG, PNG or WebP and becomes PNG otherwise. EXIF (with its orientation,
    which is not applied) and the colour profile are kept.

    Raises:
        NotAnImage: the format can't hold the image, such as a side of more than 16383 pixels in WebP.
    """
    shrink = short_side is not None and min(image.size) > short_side
    current = "JPEG" if image.format == "MPO" else image.format
    target = target.upper() if target else current
    if not shrink and target == current:
        return content
    target = target if target in ("JPEG", "PNG", "WEBP") else "PNG"
    kept = {key: image.info[key] for key in ("exif", "icc_profile") if image.info.get(key)}
    options = {"JPEG": {"quality": QUALITY, "subsampling": 0}, "WEBP": {"quality": QUALITY}, "PNG": {}}[target]
    encoded = io.BytesIO()
    with reasons(f"cannot be written as {target}"):
        converted = _to_mode_of(target, image)
        if converted.mode != image.mode:
            kept.pop("icc_profile", None)  # it describes the old mode's channels
        if shrink:
            scale = short_side / min(image.size)
            size = [max(1, round(side * scale)) for side in image.size]
            converted = converted.resize(size, Image.Resampling.LANCZOS)
        converted.save(encoded, target, **options, **kept)
    return encoded.getvalue()


def as_rgb(image: Image.Image, keep_alpha: bool = False) -> Image.Image:
    """A decoded image in 8-bit RGB, as training sees it, whatever its mode.

    16-bit greyscale keeps its upper byte; 32-bit integers are read as 16-bit values, floats as [0,1]
    where they fit in it, else as [0,255]. Transparency lies on white, or stays as RGBA with ``keep_alpha``.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        values = values * 255 if values.max(initial=0) <= 1 else values
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return image if keep_alpha else Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_mode_of(target: str, image: Image.Image) -> Image.Image:
    """The image in the nearest mode that resizes well and that the format can hold: what ``as_rgb``
    shows, in fewer channels where it is grey."""
    if target == "JPEG" and image.mode == "CMYK":
        return image
    grey = image.mode in ("L", "LA", "La", "1", "I", "F") or image.mode.startswith("I;16")
    if image.mode == "L" and target != "WEBP" and not image.has_transparency_data:
        return image
    converted = as_rgb(image, keep_alpha=target != "JPEG")
    if grey and target != "WEBP":
        return converted.convert("LA" if converted.mode == "RGBA" else "L")
    return converted
