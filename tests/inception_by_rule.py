"""The 2015 Inception with weights by rule, since the real ones can't be downloaded here."""

import io

import golden_rule
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from vfmtok.evaluation.inception import Inception


class _Unloaded(FeatureExtractorInceptionV3):
    def load_state_dict(self, *_):
        pass


@pytest.fixture(scope="session")
def inception_weights():
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.device("meta"):
        shapes = {
            k: v.shape for k, v in _Unloaded("x", ["2048"], feature_extractor_weights_path=empty).state_dict().items()
        }
    weights = {}
    for name, shape in shapes.items():
        tensor = golden_rule.tensor_for(name, shape)
        if name.endswith("running_var"):
            tensor = 1 + 4 * tensor.abs()
        elif name.endswith("num_batches_tracked"):
            tensor = torch.tensor(1)
        elif name.endswith("conv.weight"):
            tensor *= 2**0.5  # keeps the variance through ReLUs
        weights[name] = tensor
    return weights


@pytest.fixture(scope="session")
def inception(inception_weights):
    return Inception(inception_weights)


@pytest.fixture(scope="session")
def inception_file(inception_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_weights, path)
    return path


@pytest.fixture(scope="module")
def one_thread():
    """As in the scripts' processes: sums must be taken in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
