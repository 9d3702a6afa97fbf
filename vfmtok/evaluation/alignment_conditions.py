"""Images as models see them when their alignment is measured: as they are, turned and shrunk, and with noise.

What is drawn is a function of the image's number, the same as a serial run of VFM-VAE's published tool draws.

Shapes: H and W image sides.
"""

import numpy as np

CLEAN, EQUIVARIANCE = "clean", "equivariance"
NOISE_LEVELS = (0.05, 0.10, 0.15, 0.20)  # standard deviations, of pixels in [0,1]
DISTURBED = (EQUIVARIANCE, *(f"noise_{level:.2f}" for level in NOISE_LEVELS))  # SE-CKNNA is the mean over these
CONDITIONS = (CLEAN, *DISTURBED)
SEED = 42  # of image 0
ANGLES, SCALES = (0, 90, 180, 270), (1.0, 0.75, 0.5, 0.25)


def described(condition: str) -> str:
    """What it does, for people."""
    if condition == CLEAN:
        return "images as they are"
    if condition == EQUIVARIANCE:
        return "images turned by 0, 90, 180 or 270 degrees and shrunk to 1, 0.75, 0.5 or 0.25 of their side, at random"
    return f"Gaussian noise of standard deviation {condition.partition('_')[2]} on pixels in [0,1], clipped, in 8 bits"


def disturbed(pixels: np.ndarray, number: int, condition: str) -> tuple[np.ndarray, float]:
    """Pixels (H,W,3) uint8 of image ``number`` -> the same under a condition, and the scale it is to be shrunk by."""
    if condition == CLEAN:
        return pixels, 1.0
    random = np.random.RandomState(SEED + number)
    if condition == EQUIVARIANCE:
        angle, scale = int(random.choice(ANGLES)), float(random.choice(SCALES))
        return np.rot90(pixels, angle // 90), scale
    level = float(condition.partition("_")[2])
    noise = random.normal(0, level, pixels.shape).astype(np.float32) * 255
    return np.clip(pixels.astype(np.float32) + noise, 0, 255).astype(np.uint8), 1.0
