"""Perceptual distances: how different two images look to a network that was trained on others.

``LPIPS`` is the field's (Zhang et al., 2018) and needs torchvision's weights. ``EncoderPerceptual``
measures in the features of the tokenizer's own frozen encoder, for machines without them.

Shapes: B batch, N cells, C channels, L levels.
"""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.errors import ConfigError, WeightsError
from vfmtok.layers.frozen import Frozen
from vfmtok.layers.precision import at_least_float32
from vfmtok.weights import reading
from vfmtok.weights.name_maps import check_tensors

if TYPE_CHECKING:
    from vfmtok.encoders.vfm import Encoder

# --------------------------------------------------------------------------------------
# LPIPS
# --------------------------------------------------------------------------------------

BACKBONES = {  # torchvision's weights that the linear heads in the lpips package were fitted to
    "vgg": "VGG16_Weights.IMAGENET1K_V1",
    "alex": "AlexNet_Weights.IMAGENET1K_V1",
    "squeeze": "SqueezeNet1_1_Weights.IMAGENET1K_V1",
}


class LPIPS(nn.Module):
    """LPIPS 0.1 with the heads of the ``lpips`` package: frozen, float32 under autocast, not in state dicts.

    Args:
        network: "vgg" (the published loss), "alex" or "squeeze".
        weights: torchvision's file of that network; None takes it from torch hub's cache or downloads it.

    Raises:
        WeightsError: the backbone's weights can't be found or are of another network.
        ConfigError: the package lpips is not installed, or there is no such network.
    """

    def __init__(self, network: Literal["vgg", "alex", "squeeze"] = "vgg", weights: str | Path | None = None):
        super().__init__()
        if network not in BACKBONES:
            raise ConfigError(f"LPIPS knows the networks {', '.join(BACKBONES)}, got '{network}'")
        state_dict = _read_backbone(network, weights)  # first: a file that is not there is found out at once
        model = _build_lpips(network)
        _load_backbone(model.net, state_dict, network)
        self.model = Frozen(model)

    @classmethod
    def without_weights(cls, network: str) -> "LPIPS":
        """Random, for who counts what it computes. Raises ConfigError."""
        distance = cls.__new__(cls)
        nn.Module.__init__(distance)
        distance.model = Frozen(_build_lpips(network))
        return distance

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Images (B,3,H,W), the target in [-1,1] -> mean distance over the batch, float32 scalar.

        Raises:
            ValueError: the target is out of range. On the CPU only: to look would stall a GPU.
        """
        check_range(target)
        with torch.autocast(target.device.type, enabled=False):
            images = (convolution_format(at_least_float32(x)) for x in (reconstruction, target))
            return self.model(*images).mean()


def convolution_format(images: Tensor) -> Tensor:
    """(B,3,H,W) in the memory format that convolutions of a CPU are fastest in: VGG takes a fifth less time.

    A copy, since a batch of 1 can look contiguous to ``contiguous`` and not to them.
    """
    return images.clone(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def check_range(images: Tensor) -> None:
    """Raise ValueError for images beyond [-1,1], as far as can be seen for free.

    NaN passes: what to do about a loss that is not finite is the training loop's to say.
    """
    if images.device.type == "cpu" and images.numel() and images.detach().abs().amax() > 1.05:  # a sync elsewhere
        low, high = images.min(), images.max()
        raise ValueError(f"images must be in [-1,1], got values from {low:.3g} to {high:.3g}")


def _build_lpips(network: str) -> nn.Module:
    try:
        import lpips
    except ImportError:
        raise ConfigError("LPIPS needs the package lpips: pip install 'vfmtok[train]'") from None
    # The random backbone built here is overwritten; it must not use up the run's random numbers.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by an outdated keyword
        return lpips.LPIPS(net=network, pnet_rand=True, verbose=False)


def backbone_file(network: str) -> Path:
    """Where torch hub keeps torchvision's weights of a network."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(backbone_url(network)).name


def backbone_url(network: str) -> str:
    """Where torchvision publishes them."""
    from torchvision.models import get_weight  # seconds, which only who measures LPIPS should wait

    return get_weight(BACKBONES[network]).url


def _read_backbone(network: str, path: str | Path | None) -> dict[str, Tensor]:
    if path is not None:
        return reading.read(path)
    url, cached = backbone_url(network), backbone_file(network)
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:  # network, file and unpickling errors are of all kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"LPIPS: the weights of '{network}' are neither in torch hub's cache ({cached}) nor to be had from {url} "
            f"({reason}): put the file there, name it in the configuration, or use perceptual: encoder"
        ) from None


def _load_backbone(net: nn.Module, state_dict: dict[str, Tensor], network: str) -> None:
    """Copy torchvision's tensors into lpips' slices, which keep torchvision's numbers, strictly."""
    published = {re.sub(r"^slice\d+", "features", name): tensor for name, tensor in net.state_dict().items()}
    features = {name: tensor for name, tensor in state_dict.items() if not name.startswith("classifier.")}
    shapes = {name: tuple(tensor.shape) for name, tensor in published.items()}
    check_tensors(features, shapes, f"torchvision's network for LPIPS '{network}'")
    with torch.no_grad():
        for name, tensor in published.items():
            tensor.copy_(features[name])


# --------------------------------------------------------------------------------------
# The frozen encoder
# --------------------------------------------------------------------------------------


class EncoderPerceptual(nn.Module):
    """LPIPS' distance without learned heads, on the levels of a frozen encoder.

    mean over levels of mean over cells of |a/|a| - b/|b||^2, a and b being the features of the two
    images at a cell: between 0 and 4. Patch tokens and convolutional maps are compared alike.

    The encoder belongs to the tokenizer: it is not a submodule here, moves and is saved there, and
    runs in the precision it runs in there (the distance is float32). Unless ``is_tokenizers`` is False: then it is
    this module's own, moves with it and is saved nowhere. It clamps its input to [-1,1]:
    where the reconstruction is beyond, this distance has no gradient and the pixel loss alone pulls.

    Raises:
        ConfigError: the encoder is not frozen, so that the measure would be trained with the model.
    """

    def __init__(self, encoder: "Encoder", is_tokenizers: bool = True):
        super().__init__()
        if not encoder.config.frozen:
            raise ConfigError("perceptual: encoder needs a frozen encoder, encoder.frozen is false")
        self._encoder = [encoder]  # in a list, to stay out of the module tree
        self.is_tokenizers = is_tokenizers
        if not is_tokenizers:
            self.moved_with_this = Frozen(encoder)

    def forward(self, reconstruction: Tensor, target: Tensor, target_features: list[Tensor] | None = None) -> Tensor:
        """Images (B,3,H,W), the target in [-1,1] -> float32 scalar.

        ``target_features``, L tensors (B,N,C), are ``encoder(target)`` where the tokenizer's own pass
        has them already. Raises ValueError as ``LPIPS`` does.
        """
        check_range(target)
        encoder = self._encoder[0]
        if target_features is None:
            with torch.no_grad():
                target_features = encoder(target)  # L x (B,N,C)
        features = encoder.with_gradient(reconstruction)  # L x (B,N,C)
        distances = [cell_distances(a, b.detach()).mean() for a, b in zip(features, target_features, strict=True)]
        return torch.stack(distances).mean()


def cell_distances(a: Tensor, b: Tensor) -> Tensor:
    """Features (B,N,C) of two batches -> the squared distance of unit vectors at every cell (B,N), float32."""
    a, b = (F.normalize(at_least_float32(features), dim=-1) for features in (a, b))
    return (a - b).square().sum(dim=-1)
