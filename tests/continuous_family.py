"""A continuous tokenizer as a family of its own: ``python continuous_family.py vfmtok codes ...`` runs a command with
its row in the table.

Patches of 4x4 pixels to 4 channels and back. With ``variational`` an image has a normal distribution of latents.
"""

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
from torch import nn

from vfmtok import tokenizers
from vfmtok.code import Latents
from vfmtok.families import Family
from vfmtok.tokenizers.contract import check_images, to_pixels


@dataclass(frozen=True)
class PatchesConfig:
    kind: Literal["patches"] = "patches"
    image_size: int = 16
    channels: int = 4
    variational: bool = False

    @property
    def code(self) -> Latents:
        return Latents((self.channels, self.image_size // 4, self.image_size // 4))


class Patches(nn.Module):
    frozen_parts = ()
    recomputed = ()
    quantizers = ()

    def __init__(self, config: PatchesConfig):
        super().__init__()
        self.config, self.code, self.encode_draws = config, config.code, config.variational
        self.to_moments = nn.Conv2d(3, 2 * config.channels, 4, 4)
        self.to_images = nn.ConvTranspose2d(config.channels, 3, 4, 4)

    @property
    def device(self) -> torch.device:
        return self.to_images.weight.device

    @property
    def last_layer(self) -> torch.Tensor:
        return self.to_images.weight

    def encode(self, images, draws=None):
        check_images(images)
        mean, log_std = self.to_moments(images.float()).chunk(2, 1)  # (B,C,h,w) both
        std = (log_std - 2).exp()
        noise = 0 if draws is None else draws.normal("posterior", mean[0].numel()).view_as(mean)
        latents = mean + std * noise if self.config.variational else mean
        return SimpleNamespace(latents=latents, posterior=SimpleNamespace(mean=mean, std=std), losses={})

    def decode(self, code):
        return self.to_images(code)

    @torch.no_grad()
    def decode_to_uint8(self, code, size=256):
        return to_pixels(self.decode(code), size)

    def forward(self, images):
        encoding = self.encode(images)
        return SimpleNamespace(reconstruction=self.decode(encoding.latents), losses={})


FAMILIES = {"patches": Family(PatchesConfig, "continuous_family:Patches")}


def tokenizer(variational: bool = False, **fields) -> Patches:
    """With weights by which another view, or another channel, has other latents."""
    torch.manual_seed(3)
    return Patches(PatchesConfig(variational=variational, **fields)).eval().requires_grad_(False)


if __name__ == "__main__":
    sys.modules["continuous_family"] = sys.modules["__main__"]  # one class, by whichever name it is found
    sys.path.insert(0, str(Path(__file__).parent))
    tokenizers.TOKENIZERS.update(FAMILIES)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
