import io
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_rule import image_for
from photographs import jpeg, photographs
from PIL import Image

from vfmtok.data import transforms
from vfmtok.data.transforms import CounterRandom, EvaluationCrop, RandomCrop, RandomCrops, TenCrop, five_windows
from vfmtok.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "center_crop.npz"


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(height: int = 48, width: int = 64) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8))


def test_evaluation_crop_is_the_published_one():
    golden = np.load(GOLDEN)
    count = sum(name.startswith("crop") for name in golden.files)
    assert count >= 3
    for i in range(count):
        height, width = golden[f"size{i}"]
        smooth = image_for(f"sharedaug{i}", 1, max(height, width))[0].numpy().transpose(1, 2, 0)[:height, :width]
        image = Image.fromarray(((smooth + 1) * 127.5).astype(np.uint8))
        crop = EvaluationCrop(96)(encoded(image, "PNG"))
        np.testing.assert_array_equal(crop.permute(1, 2, 0).numpy(), golden[f"crop{i}"])


def published_random_crop(image: Image.Image, size: int, short_side: int, top_share: float, left_share: float):
    """The training crop written anew, with the draws handed in as fractions."""
    while min(image.size) >= 2 * short_side:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    scale = short_side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
    pixels = np.asarray(image)
    top = math.floor(top_share * (pixels.shape[0] - size + 1))
    left = math.floor(left_share * (pixels.shape[1] - size + 1))
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (33, 32), (1, 1), (200, 3), (513, 1025)])
def test_random_crop_does_what_the_recipe_says(size):
    image = gradient(size[1], size[0])
    for index in range(4):
        draws = np.random.Philox(key=[7, 0x76666D746F6B], counter=[0, 0, 2, index]).random_raw(4) / 2**64
        short_side = 32 + math.floor(draws[0] * (math.ceil(32 / 0.8) - 32 + 1))
        expected = published_random_crop(image, 32, short_side, draws[1], draws[2])
        expected = expected[:, ::-1] if draws[3] >= 0.5 else expected
        crop = RandomCrop(32, seed=7, exact=True)(encoded(image, "PNG"), 2, index).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_fast_crop_is_within_a_level_of_the_exact_one(subsampling):
    """Sizes from enlarging to five halvings; original sides odd, even and multiples of 16."""
    reduced = 0
    for photograph in photographs():
        for cut in (1, 2, 16):
            image = photograph.crop((0, 0, photograph.width // cut * cut, photograph.height // cut * cut))
            data = jpeg(image, subsampling=subsampling)
            for side in (32, 160, 336):
                fast = RandomCrop(side)(data, 0, cut).float()
                exact = RandomCrop(side, exact=True)(data, 0, cut).float()
                difference = (fast - exact).abs().mean().item()
                reduced += difference > 0.1  # the resize alone stays far below
                assert difference <= 1.0, (photograph.size, image.size, side)
    assert reduced > 8  # reduced decoding did happen


def test_a_reduced_decode_is_really_smaller():
    data = jpeg(photographs()[-1].crop((0, 0, 640, 416)), subsampling=0)
    image = transforms.open_image(data, decode=False)
    transforms._decode_reduced(image, halvings=1)
    assert transforms.decode_rgb(image).size == (320, 208)


def test_simplejpeg_gives_the_same_bytes(monkeypatch):
    assert transforms.simplejpeg is not None, "the dev extra brings it"
    grey = photographs()[0].convert("L")
    files = [jpeg(photo, 92, sampling) for photo in photographs() for sampling in (0, 1, 2)] + [jpeg(grey)]
    damaged = files[0][:9000]
    fast = [RandomCrop(336)(data, 0, 1) for data in files]
    with pytest.raises(DataError):
        RandomCrop(336)(damaged, 0, 1)
    monkeypatch.setattr(transforms, "simplejpeg", None)
    for data, crop in zip(files, fast, strict=True):
        assert torch.equal(RandomCrop(336)(data, 0, 1), crop)


def test_a_long_image_is_cut_without_being_resized_whole():
    image = gradient(4, 3000)  # at 336 pixels high, 252,000 wide
    data = encoded(image, "PNG")
    fast, exact = (RandomCrop(336, exact=exact)(data, 0, 5).float() for exact in (False, True))
    assert (fast - exact).abs().mean() <= 1.0
    assert EvaluationCrop(336)(data).shape == (3, 336, 336)


def test_crops_are_a_function_of_seed_epoch_and_index():
    data = jpeg(photographs()[0])
    first = RandomCrop(64, seed=1)(data, 3, 9)
    assert torch.equal(first, RandomCrop(64, seed=1)(data, 3, 9))
    for other in (RandomCrop(64, seed=2)(data, 3, 9), RandomCrop(64, seed=1)(data, 4, 9)):
        assert not torch.equal(first, other)
    assert not torch.equal(first, RandomCrop(64, seed=1)(data, 3, 10))


def test_draws_are_uniform():
    draws = np.array([[CounterRandom(0, e, i).below(10) for e in range(50)] for i in range(200)])
    counts = np.bincount(draws.ravel(), minlength=10)
    assert ((counts - 1000) ** 2 / 1000).sum() < 30  # chi-square with 9 degrees of freedom, p < 0.0005
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.25


def test_flip_mirrors_half_of_the_crops():
    data = jpeg(photographs()[0])
    mirrored = 0
    for index in range(40):
        plain, flipped = (RandomCrop(32, flip=flip)(data, 0, index) for flip in (False, True))
        same, mirror = torch.equal(plain, flipped), torch.equal(plain.flip(2), flipped)
        assert same != mirror
        mirrored += mirror
    assert 10 <= mirrored <= 30


def test_ten_crop_takes_corners_and_centre():
    data = encoded(gradient(300, 400), "PNG")
    views = TenCrop(96)(data)
    assert views.shape == (10, 3, 96, 96)
    for start, crop_range in ((0, 1.05), (5, 1.1)):
        outer = math.floor(96 * Fraction(str(crop_range)))  # 100 and 105
        square = EvaluationCrop(outer)(data)
        end, middle = outer - 96, round((outer - 96) / 2)
        for view, (x, y) in enumerate([(0, 0), (end, 0), (0, end), (end, end), (middle, middle)]):
            assert torch.equal(views[start + view], square[:, y : y + 96, x : x + 96])


def test_ten_crops_at_336_come_from_352_and_369_pixels():
    """Truncated as published; at no size does binary rounding push a product below the whole number it is."""
    windows = {r: five_windows((500, 400), 336, r) for r in (1.05, 1.1)}
    assert [window.short_side for r in windows for window in windows[r]] == [352] * 5 + [369] * 5
    for r in windows:
        for side in range(1, 1100):
            assert five_windows((9, 9), side, r)[0].short_side == math.floor(side * Fraction(str(r))), (side, r)


def test_random_crops_are_the_training_crops_of_as_many_epochs():
    data = jpeg(photographs()[0])
    views = RandomCrops(48, count=3, seed=5)(data, 0, 2)
    assert all(torch.equal(views[i], RandomCrop(48, seed=5)(data, i, 2)) for i in range(3))


def test_to_unit_range_spans_minus_one_to_one():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    values = transforms.to_unit_range(pixels)
    assert values.is_contiguous() and values.dtype == torch.float32
    np.testing.assert_allclose(values[0, 0].flatten(), np.arange(256) / 127.5 - 1, atol=1e-6)


# ---- what people put in folders ------------------------------------------------------------


def centre_colour(data: bytes) -> list[int]:
    return EvaluationCrop(16)(data)[:, 8, 8].tolist()


def test_cmyk_jpeg():
    data = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(np.subtract(centre_colour(data), [255, 0, 0])).max() <= 6


def test_16_bit_grey():
    ramp = Image.fromarray(np.full((32, 32), 40_000, np.uint16))
    assert centre_colour(encoded(ramp, "PNG")) == [40_000 >> 8] * 3
    assert centre_colour(encoded(ramp, "TIFF")) == [40_000 >> 8] * 3


def test_float_and_integer_tiff():
    assert centre_colour(encoded(Image.new("F", (32, 32), 0.5), "TIFF")) == [128] * 3
    assert centre_colour(encoded(Image.new("I", (32, 32), 40_000), "TIFF")) == [40_000 >> 8] * 3


def test_palette_bilevel_and_transparency():
    red = Image.new("RGB", (32, 32), (255, 0, 0))
    assert centre_colour(encoded(red.quantize(4), "PNG")) == [255, 0, 0]
    assert centre_colour(encoded(red.quantize(4), "PNG", transparency=0)) == [255, 255, 255]
    assert centre_colour(encoded(Image.new("1", (32, 32), 1), "PNG")) == [255, 255, 255]
    assert centre_colour(encoded(Image.new("RGBA", (32, 32), (0, 0, 0, 0)), "PNG")) == [255, 255, 255]
    assert centre_colour(encoded(Image.new("RGBA", (32, 32), (0, 0, 0, 255)), "PNG")) == [0, 0, 0]
    assert centre_colour(encoded(Image.new("LA", (32, 32), (0, 128)), "PNG")) == [127, 127, 127]
    assert centre_colour(encoded(red, "PNG", transparency=(255, 0, 0))) == [255, 255, 255]


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("lime", "blue")]
    assert centre_colour(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [0, 255, 0]
    webp = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert centre_colour(webp) == [0, 255, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation, format):
    turns = [[], ["FLIP_LEFT_RIGHT"], ["ROTATE_180"], ["FLIP_TOP_BOTTOM"], ["TRANSPOSE"]]
    turns += [["ROTATE_270"], ["TRANSVERSE"], ["ROTATE_90"]]
    exif = Image.Exif()
    exif[transforms.ORIENTATION] = orientation
    image = gradient(96, 160)
    data = encoded(image, format, exif=exif, quality=100)
    for turn in turns[orientation - 1]:
        image = image.transpose(Image.Transpose[turn])
    wanted = encoded(image, format, quality=100)
    for crop in (EvaluationCrop(32), RandomCrop(32, seed=3)):
        difference = (crop(data, 0, 0).float() - crop(wanted, 0, 0).float()).abs()
        assert difference.mean() < 2.5, crop


def test_one_pixel_image():
    assert centre_colour(encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")) == [9, 8, 7]
    assert RandomCrop(32)(encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), 0, 0)[:, 3, 3].tolist() == [9, 8, 7]


@pytest.mark.parametrize("crop", [EvaluationCrop(32), RandomCrop(32), TenCrop(32)])
def test_damaged_images_are_data_errors_of_one_line(crop):
    whole = jpeg(photographs()[0])
    bomb = b"P6 30000 30000 255\n"
    for data in (b"", b"no image at all", whole[: len(whole) // 2], whole[:100], encoded(gradient(), "PNG")[:80], bomb):
        with pytest.raises(DataError) as caught:
            crop(data, 0, 0)
        assert "\n" not in str(caught.value)
