"""VFM-VAE's training crop: what it covers, and that it is a function of (seed, epoch, index)."""

import io

import numpy as np
import torch
from image_makers import encoded
from PIL import Image

from vfmtok.data.training_crop import ZoomedCrop, training_crop
from vfmtok.data.transforms import EvaluationCrop, RandomCrop


def gradient(width: int, height: int) -> bytes:
    """Red says the column, green the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_squares_of_half_the_short_side_to_all_of_it_anywhere():
    data, sides, places, mirrored = gradient(200, 120), [], [], 0
    for index in range(300):
        crop = ZoomedCrop(32, seed=3)(data, 0, index).int()
        columns, rows = crop[0, 16], crop[1, :, 16]
        sides.append(int(rows[-1] - rows[0]) * 33 / 32)
        places.append((int(columns.min()), int(rows[0])))
        mirrored += int(columns[0] > columns[-1])
        assert abs(abs(int(columns[-1] - columns[0])) - int(rows[-1] - rows[0])) <= 2  # a square
    assert 57 <= min(sides) < 65 and 114 < max(sides) <= 123 and abs(np.mean(sides) - 90) < 5
    assert max(x for x, _ in places) > 100 and max(y for _, y in places) > 40 and min(places) < (15, 200)
    assert 110 < mirrored < 190


def test_the_resize_is_pillow_s():
    """The whole of a square image, when the share drawn is the largest: compared at the share that was drawn."""
    data = encoded(5, (64, 64), "PNG")
    image, crop = Image.open(io.BytesIO(data)), ZoomedCrop(24, seed=1, flip=False)(data, 2, 7)
    found = [
        (side, left, top)
        for side in range(32, 65)
        for left in range(65 - side)
        for top in range(65 - side)
        if np.array_equal(
            np.array(image.crop((left, top, left + side, top + side)).resize((24, 24), Image.LANCZOS)),
            crop.permute(1, 2, 0).numpy(),
        )
    ]
    assert len(found) == 1
    assert torch.equal(crop, ZoomedCrop(24, seed=1, flip=False)(data, 2, 7))
    assert not torch.equal(crop, ZoomedCrop(24, seed=1, flip=False)(data, 3, 7))


def test_the_names_in_recipes():
    data = encoded(9, (90, 70))
    assert torch.equal(training_crop("random", 32, 4, True)(data, 1, 2), RandomCrop(32, 4)(data, 1, 2))
    assert torch.equal(training_crop("zoom", 32, 4, True)(data, 1, 2), ZoomedCrop(32, 4)(data, 1, 2))
    assert torch.equal(training_crop("center", 32, 4, False)(data, 1, 2), RandomCrop(32, 4, False, True)(data, 1, 2))
    close = training_crop("center", 32, 4, False)(data, 1, 2).float() - EvaluationCrop(32)(data).float()
    assert close.abs().mean() < 1
