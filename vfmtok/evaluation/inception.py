"""The Inception network of FID: the 2015 graph in torch-fidelity's port, with the tap that sFID needs.

Its three outputs follow the evaluation of ADM (Dhariwal & Nichol, 2021):

- pool3: the 2048 averages of the last block, for FID, KID, precision and recall;
- spatial: the first 7 channels of the 1x1 branch of ``mixed_6``, the third of the four 17x17 blocks (the graph
  counts mixed_3, which reduces to 17x17, then mixed_4 to mixed_7; torch-fidelity calls the third Mixed_6d), in the
  graph's order (row, column, channel): 17*17*7 = 2023 values, for sFID;
- probabilities: softmax of pool3 times the classifier's weights **without its bias**, as ADM and all before it
  have it (torch-fidelity's "logits_unbiased"), for the Inception score.

Everything is float32, without TF32 and outside autocast, and is restored afterwards.

Shapes: B batch, H, W the image.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vfmtok import distributed
from vfmtok.errors import EvaluationError
from vfmtok.evaluation.inception_weights import find_weights
from vfmtok.layers.precision import full_float32
from vfmtok.weights import reading
from vfmtok.weights.name_maps import check_tensors

try:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
except ImportError as error:
    raise EvaluationError(f"evaluation needs torch-fidelity ({error}): pip install vfmtok[eval]") from None

POOL_DIM, SPATIAL_DIM, CLASSES = 2048, 2023, 1008
SPATIAL_CHANNELS = 7

SpatialTap = Literal["convolution", "activation"]


class InceptionFeatures(NamedTuple):
    """Of one batch, all float32."""

    pool: Tensor  # (B,2048)
    spatial: Tensor  # (B,2023)
    probabilities: Tensor  # (B,1008), rows sum to 1


class Inception(nn.Module):
    """uint8 images to ``InceptionFeatures``.

    Args:
        state_dict: torch-fidelity's tensors, by their names.
        spatial_tap: where in the 1x1 branch sFID's features are read: the raw output of its "convolution", before
            batch norm, or its "activation", after batch norm and ReLU. ``frechet.check_same_tap`` tells
            from a reference's means which of the two it was made with.
        weights_sha256: of the file the tensors come from, for the protocol.

    Raises:
        WeightsError: tensors are missing, extra or mis-shaped.
    """

    def __init__(
        self, state_dict: dict[str, Tensor], spatial_tap: SpatialTap = "convolution", weights_sha256: str | None = None
    ):
        super().__init__()
        if spatial_tap not in ("convolution", "activation"):
            raise EvaluationError(f"spatial_tap must be 'convolution' or 'activation', got '{spatial_tap}'")
        self.spatial_tap, self.weights_sha256 = spatial_tap, weights_sha256
        self.network = _build(state_dict)
        branch = self.network.Mixed_6d.branch1x1
        self._tapped = branch.conv if spatial_tap == "convolution" else branch

    @torch.no_grad()
    def forward(self, images: Tensor) -> InceptionFeatures:
        """images (B,3,H,W) uint8, resized inside to 299 as TensorFlow 1 does it."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise EvaluationError(f"Inception takes uint8 (B,3,H,W), got {images.dtype} {tuple(images.shape)}")
        with full_float32(images.device.type), _outputs_of(self._tapped) as tapped:
            pool, logits = self.network(images)  # (B,2048), (B,1008)
            spatial = tapped[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B,17*17*7)
            return InceptionFeatures(pool, spatial, logits.softmax(dim=-1))

    @property
    def description(self) -> str:
        """In a protocol, with the weights it really has."""
        return f"Inception 2015-12-05, weights {(self.weights_sha256 or 'unknown')[:8]}, float32"

    def protocol(self) -> dict[str, str | None]:
        """What a reader must know to compute the same features."""
        return {
            "network": "Inception 2015-12-05 (torch-fidelity)",
            "weights_sha256": self.weights_sha256,
            "spatial": f"mixed_6/conv, {self.spatial_tap}, {SPATIAL_CHANNELS} channels",
        }


def load_inception(
    path: str | Path | None = None, spatial_tap: SpatialTap = "convolution", download: bool = True
) -> Inception:
    """The network with its published weights, from wherever ``find_weights`` finds them.

    Raises:
        WeightsError: the file is nowhere, damaged, or of another network.
    """
    file = find_weights(path, download=download)
    return Inception(reading.read(file), spatial_tap, reading.sha256(file))


def open_inception(path: Path | None, world: distributed.World, spatial_tap: SpatialTap = "convolution") -> Inception:
    """The Inception network on this process's device; every process must call it. Raises WeightsError."""
    with distributed.together():
        network = load_inception(path, spatial_tap)
    return network.eval().to(world.device)


# --------------------------------------------------------------------------------------
# torch-fidelity's module
# --------------------------------------------------------------------------------------


class _CheckedNetwork(FeatureExtractorInceptionV3):
    """torch-fidelity's module, which loads its weights while it is built; here they are looked at before."""

    def load_state_dict(self, state_dict, *args, **kwargs):
        # The counters are of no use, and absent from files written by old versions of PyTorch.
        expected = {name: t.shape for name, t in self.state_dict().items() if not _is_counter(name)}
        check_tensors({k: v for k, v in state_dict.items() if not _is_counter(k)}, expected, "the 2015 Inception")
        return super().load_state_dict(state_dict, *args, **kwargs)


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _build(state_dict: dict[str, Tensor]) -> FeatureExtractorInceptionV3:
    """torch-fidelity opens files in a way that may run code in them: it is handed one that we wrote."""
    file = io.BytesIO()
    torch.save(dict(state_dict), file)
    file.seek(0)
    with torch.random.fork_rng(devices=[]):  # its default initialisation would move the caller's generator
        return _CheckedNetwork("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=file)


@contextmanager
def _outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list that takes what ``module`` returns meanwhile."""
    outputs: list[Tensor] = []
    handle: RemovableHandle = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
