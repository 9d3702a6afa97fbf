"""The picture of `vfmtok sample` and of training: a row of images per class."""

import numpy as np

from vfmtok.pictures.rows import draw_rows


def test_rows_of_any_class_names_stay_in_the_picture():
    """Names that Pillow's own font lacks, lone halves of characters from file names, and one that is too long."""
    pixels = np.full((3, 2, 32, 32, 3), 200, np.uint8)
    names = ["Früchte и ягоды", "\udce4pfel\nrot", "x" * 400]
    picture = np.asarray(draw_rows(pixels, names, "title"))
    captions = [picture[58 + row * 150 : 58 + row * 150 + 20] for row in range(3)]  # (20,W,3) above each row
    assert all((caption < 200).any() for caption in captions)
    assert all((caption[:, -16:] == 255).all() for caption in captions)  # the margin stays white
    assert (captions[0] != captions[2]).any()
