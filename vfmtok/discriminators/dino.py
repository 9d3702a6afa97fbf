"""The DINO discriminator (StyleGAN-T, Sauer et al., 2023): small heads on a frozen self-supervised ViT.

Shapes: B batch, H and W image sides, N = 196 patches, C = 384 channels.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.discriminators.batch_norm import LocalBatchNorm
from vfmtok.discriminators.released import DINO, DINO_VFMVAE
from vfmtok.layers.frozen import Frozen
from vfmtok.layers.precision import at_least_float32
from vfmtok.weights import reading
from vfmtok.weights.name_maps import NameMap, check_tensors

SIDE = 224  # the side DINO was trained at
BLOCKS = (3, 6, 9, 12)  # read after these, and after the embedding
WIDTH = 384


@dataclass(frozen=True)
class Setup:
    """What systems do differently with the same heads on the same network.

    Attributes:
        resize: to 224: "area" averages where it shrinks and is bicubic where it grows; the others are antialiased where
            they shrink.
        readouts: the number of blocks each head comes after, 0 being the embedding; the order of the logits.
        gelu: of the network, as timm names it; it was trained with the exact one.
        eps: of the heads' batch norms.
        released: names of the heads in published files.
    """

    resize: Literal["area", "bilinear", "bicubic"] = "area"
    readouts: tuple[int, ...] = (0, *BLOCKS)
    gelu: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    eps: float = 1e-6
    released: NameMap = DINO


VFMTOK = Setup()
VFMVAE = Setup("bilinear", (*BLOCKS, 0), "gelu", 1e-5, DINO_VFMVAE)


class DinoDiscriminator(nn.Module):
    """One head per readout of DINO ViT-S/16; their logits side by side.

    In training, an image larger than 224 is half the time cropped to 224 at a random place and
    otherwise shrunk; one choice and one place for the batch. They are drawn from torch's global CPU
    generator, so saving and restoring its state repeats them.

    Args:
        weights: of the backbone: "hub", the path of Meta's or timm's file, or "none" (random, and
            the same in every run, as it is not saved).
        setup: of a system: what it does differently.

    Raises:
        WeightsError: the weights can't be found or are of another model.
    """

    takes_any_size = True

    def __init__(self, weights: str | Path = "hub", setup: Setup = VFMTOK):
        super().__init__()
        self.setup, self.released = setup, setup.released
        backbone = _build_backbone(weights, setup.gelu)
        mean, std = (torch.tensor(backbone.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("mean", mean, persistent=False)  # of pixels in [0,1]
        self.register_buffer("std", std, persistent=False)
        self.backbone = Frozen(backbone)
        self.heads = nn.ModuleList(Head(WIDTH, setup.eps) for _ in setup.readouts)

    def forward(self, images: Tensor) -> Tensor:
        """images (B,3,H,W) in [-1,1], any size -> float32 logits (B, 5*196)."""
        images = self._to_side(images)  # (B,3,224,224)
        scale = self.std.reciprocal()  # a new tensor: DDP overwrites buffers, which the graph must not hold
        readouts = self.read(((images + 1) / 2 - self.mean) * scale)  # 5 x (B,C,N)
        logits = [head(readout) for head, readout in zip(self.heads, readouts, strict=True)]  # 5 x (B,N)
        return at_least_float32(torch.cat(logits, dim=1))  # (B,5*N)

    def _to_side(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if (height, width) == (SIDE, SIDE):
            return images
        smooth = "bicubic" if self.setup.resize == "area" else self.setup.resize
        if min(height, width) < SIDE:
            return F.interpolate(images, (SIDE, SIDE), mode=smooth, align_corners=False)
        if self.training:
            crops, y, x = torch.rand(3, device="cpu").tolist()  # always three, so that every call draws alike
            if crops < 0.5:
                top, left = int(y * (height - SIDE + 1)), int(x * (width - SIDE + 1))
                return images[..., top : top + SIDE, left : left + SIDE]
        if self.setup.resize == "area":
            return F.adaptive_avg_pool2d(images, SIDE)
        return F.interpolate(images, (SIDE, SIDE), mode=smooth, align_corners=False, antialias=True)

    def read(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B,3,224,224) -> 5 readouts (B,C,N): patch tokens + class token, no final norm."""
        vit = self.backbone.network
        patches = vit.patch_embed(pixels)  # (B,N,C)
        x = torch.cat([vit.cls_token.expand(len(patches), -1, -1), patches], dim=1) + vit.pos_embed  # (B,1+N,C)
        found = {0: x}
        for number, block in enumerate(vit.blocks, start=1):
            x = block(x)  # (B,1+N,C)
            if number in BLOCKS:
                found[number] = x
        readouts = [found[number] for number in self.setup.readouts]
        return [(x[:, 1:] + x[:, :1]).transpose(1, 2) for x in readouts]


class Head(nn.Module):
    """Readout (B,C,N) -> a logit per patch (B,N)."""

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.pointwise = HeadBlock(channels, 1, eps)
        self.circular = HeadBlock(channels, 9, eps)
        self.to_logit = SpectralConv1d(channels, 1, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise(x)  # (B,C,N)
        x = (x + self.circular(x)) / math.sqrt(2)  # (B,C,N)
        return self.to_logit(x).squeeze(1)  # (B,N)


class HeadBlock(nn.Module):
    """Spectral-norm convolution over the patches in row order, batch norm over groups, LeakyReLU 0.2."""

    def __init__(self, channels: int, kernel: int, eps: float):
        super().__init__()
        self.conv = SpectralConv1d(channels, channels, kernel)
        self.norm = LocalBatchNorm(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)  # (B,C,N)


class SpectralConv1d(nn.Module):
    """1-d convolution, padded in a circle, with its weight divided by the largest singular value.

    The value is u^T W v, W being the weight as a matrix (outputs, rest); every training forward
    improves u and v by one power iteration (v = W^T u, then u = W v, unit length). It is ours rather
    than torch's since that one iterates in the low precision of autocast; here it is float32.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        fresh = nn.Conv1d(inputs, outputs, kernel)  # PyTorch's default initialisation
        self.weight, self.bias = fresh.weight, fresh.bias  # (outputs,inputs,kernel), (outputs,)
        self.register_buffer("u", F.normalize(torch.randn(outputs), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(inputs * kernel), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,N) -> (B,outputs,N)."""
        reach = self.weight.shape[2] // 2
        if reach:
            x = F.pad(x, (reach, reach), mode="circular")
        return F.conv1d(x, self.normalised_weight().to(x.dtype), self.bias.to(x.dtype))

    def normalised_weight(self) -> Tensor:
        with torch.autocast(self.weight.device.type, enabled=False):
            weight = at_least_float32(self.weight)
            matrix = weight.flatten(1)  # (outputs,inputs*kernel)
            u, v = self.u.to(matrix.dtype), self.v.to(matrix.dtype)
            if self.training:
                with torch.no_grad():
                    v = F.normalize(matrix.t() @ u, dim=0)
                    u = F.normalize(matrix @ v, dim=0)
                    self.u.copy_(u)  # the graph holds u and v, not the buffers: several forwards may precede a backward
                    self.v.copy_(v)
            else:
                u, v = u.clone(), v.clone()
            return weight / torch.dot(u, matrix @ v)


def _build_backbone(weights: str | Path, gelu: str) -> nn.Module:
    import timm  # seconds, which only who builds one should wait

    with torch.random.fork_rng(devices=[]):  # frozen and not saved: random ones must come back alike
        torch.manual_seed(0)
        vit = timm.create_model(
            "vit_small_patch16_224.dino", pretrained=False, num_classes=0, act_layer=gelu, dynamic_img_size=False
        )
    if weights == "none":
        warnings.warn("the DINO discriminator's frozen backbone has RANDOM weights, by weights 'none'", stacklevel=5)
        return vit
    setting = "the discriminator's weights"
    path = reading.download_timm(vit.pretrained_cfg, "dino_vits16", setting) if weights == "hub" else weights
    state_dict = reading.read(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    check_tensors(state_dict, shapes, "DINO ViT-S/16")  # Meta's file and timm's bear the same names
    vit.load_state_dict(state_dict)
    return vit
