"""LPIPS as an evaluation needs it: a value for every image, float32 without TF32, or the reason why there is none.

Shapes: B batch, H, W sides.
"""

from pathlib import Path

import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.layers.precision import full_float32
from vfmtok.losses.perceptual import LPIPS, backbone_file
from vfmtok.metrics.pixels import Distance
from vfmtok.weights import reading


def open_lpips(path: Path | None, world: distributed.World) -> tuple[Distance | None, str]:
    """LPIPS, one value an image, and the SHA-256 of its weights - or None, and why it is left out. Every process gets
    the same answer.

    Args:
        path: torchvision's VGG16 file; None looks in torch hub's cache and tries to download it.

    Raises:
        WeightsError: a file was named, and it can't be used.
    """
    network, problem, digest = None, "", ""
    with distributed.together():
        try:
            network = LPIPS("vgg", path).to(world.device)
            digest = reading.sha256(path or backbone_file("vgg"))
        except (WeightsError, ConfigError) as error:
            if path is not None:
                raise
            problem = str(error).split(": put the file")[0]
    problems = [text for text in distributed.gather(problem) if text]
    if problems:
        return None, problems[0]

    @torch.no_grad()
    def distance(originals: Tensor, reconstructions: Tensor) -> Tensor:
        """Two batches (B,3,H,W) in [-1,1] -> (B,)."""
        with full_float32(originals.device.type):
            return network.model(originals, reconstructions).flatten()

    return distance, digest
