import numpy as np

from vfmtok.pictures.latent_channels import CELL, GAP, ROWS, SPREAD, draw_channels
from vfmtok.pictures.style import CAPTION, MARGIN, TITLE


def test_every_channel_is_drawn_at_its_place_and_by_its_own_spread():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (ROWS + 3, 8, 8, 3), dtype=np.uint8)
    latents = generator.normal(size=(len(images), 3, 4, 4)) * [[[[1.0]], [[100.0]], [[0.01]]]] + 7
    sheet = np.asarray(draw_channels(images, 255 - images, latents, [f"name {n}" for n in range(len(images))]))
    cell = CELL // 4
    for row, number in ((0, 0), (ROWS - 1, len(images) - 1)):
        upper = MARGIN + TITLE + CAPTION + row * (CELL + CAPTION)
        pixel = sheet[upper + 1, MARGIN + 1]
        assert (pixel == images[number, 0, 0]).all() and (
            sheet[upper + 1, MARGIN + CELL + GAP + 1] == 255 - pixel
        ).all()
        for channel in range(3):
            values = latents[:, channel]
            deviations = (latents[number, channel, 2, 1] - values.mean()) / values.std()
            grey = np.clip(np.round(255 * (0.5 + deviations / SPREAD / 2)), 0, 255)
            left = MARGIN + (2 + channel) * (CELL + GAP)
            assert (sheet[upper + 2 * cell + cell // 2, left + cell + cell // 2] == grey).all()
    assert len(sheet) == MARGIN + TITLE + CAPTION + ROWS * (CELL + CAPTION) + MARGIN
