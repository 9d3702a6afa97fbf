"""The Inception network against the 2015 graph written out a second time, in float64 and from the weights alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vfmtok.errors import EvaluationError, WeightsError
from vfmtok.evaluation.inception import Inception
from vfmtok.layers.precision import full_float32

BLOCKS_35 = ("Mixed_5b", "Mixed_5c", "Mixed_5d")
BLOCKS_17 = ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e")  # mixed_4 ... mixed_7 of the graph


class Graph:
    """A functional reading of the graph. ``raw`` keeps what every convolution gives, before batch norm."""

    def __init__(self, weights):
        self.weights = {name: tensor.double() for name, tensor in weights.items()}
        self.raw = {}

    def conv(self, x, name, stride=1, same=True):
        weight = self.weights[f"{name}.conv.weight"]
        padding = [(k - 1) // 2 for k in weight.shape[2:]] if same else 0
        x = self.raw[name] = F.conv2d(x, weight, stride=stride, padding=padding)
        mean, var, scale, shift = (
            self.weights[f"{name}.bn.{n}"].view(1, -1, 1, 1) for n in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 0.001).sqrt() * scale + shift).clamp(min=0)

    def chain(self, x, block, *names):
        for name in names:
            x = self.conv(x, f"{block}.{name}")
        return x

    def pooled(self, x):
        """3x3 mean of what is really there: TensorFlow does not count the padding."""
        ones = torch.ones_like(x[:, :1])
        box = torch.ones(1, 1, 3, 3, dtype=x.dtype)
        sums = F.conv2d(x, box.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])
        return sums / F.conv2d(ones, box, padding=1)

    def __call__(self, images):
        x = (resize_like_tensorflow(images, 299) - 128) / 128
        x = self.conv(x, "Conv2d_1a_3x3", stride=2, same=False)
        x = self.conv(x, "Conv2d_2a_3x3", same=False)
        x = F.max_pool2d(self.conv(x, "Conv2d_2b_3x3"), 3, 2)
        x = self.conv(x, "Conv2d_3b_1x1")
        x = F.max_pool2d(self.conv(x, "Conv2d_4a_3x3", same=False), 3, 2)
        for b in BLOCKS_35:
            x = torch.cat([
                self.chain(x, b, "branch1x1"),
                self.chain(x, b, "branch5x5_1", "branch5x5_2"),
                self.chain(x, b, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
                self.chain(self.pooled(x), b, "branch_pool"),
            ], 1)  # fmt: skip
        double = self.chain(x, "Mixed_6a", "branch3x3dbl_1", "branch3x3dbl_2")
        x = torch.cat([
            self.conv(x, "Mixed_6a.branch3x3", stride=2, same=False),
            self.conv(double, "Mixed_6a.branch3x3dbl_3", stride=2, same=False),
            F.max_pool2d(x, 3, 2),
        ], 1)  # fmt: skip
        for b in BLOCKS_17:
            x = torch.cat([
                self.chain(x, b, "branch1x1"),
                self.chain(x, b, "branch7x7_1", "branch7x7_2", "branch7x7_3"),
                self.chain(x, b, *(f"branch7x7dbl_{i}" for i in range(1, 6))),
                self.chain(self.pooled(x), b, "branch_pool"),
            ], 1)  # fmt: skip
        three = self.chain(x, "Mixed_7a", "branch3x3_1")
        seven = self.chain(x, "Mixed_7a", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3")
        x = torch.cat([
            self.conv(three, "Mixed_7a.branch3x3_2", stride=2, same=False),
            self.conv(seven, "Mixed_7a.branch7x7x3_4", stride=2, same=False),
            F.max_pool2d(x, 3, 2),
        ], 1)  # fmt: skip
        for b, pool in (("Mixed_7b", self.pooled), ("Mixed_7c", lambda x: F.max_pool2d(x, 3, 1, padding=1))):
            three = self.chain(x, b, "branch3x3_1")
            double = self.chain(x, b, "branch3x3dbl_1", "branch3x3dbl_2")
            x = torch.cat([
                self.chain(x, b, "branch1x1"),
                *(self.chain(three, b, f"branch3x3_2{i}") for i in "ab"),
                *(self.chain(double, b, f"branch3x3dbl_3{i}") for i in "ab"),
                self.chain(pool(x), b, "branch_pool"),
            ], 1)  # fmt: skip
        return x.mean((2, 3))


def resize_like_tensorflow(images, size):
    """Bilinear from the top left corner (no half-pixel centres), position by position."""
    source = images.double().numpy()
    for axis in (2, 3):
        length = source.shape[axis]
        position = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = position.astype(int)
        high = np.minimum(low + 1, length - 1)
        share = (position - low).astype(np.float64).reshape([-1 if a == axis else 1 for a in range(4)])
        source = source.take(low, axis) * (1 - share) + source.take(high, axis) * share
    return torch.from_numpy(source)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (9, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def graph(inception_weights, images):
    graph = Graph(inception_weights)
    graph.pool = graph(images[:2])
    return graph


def relative(value, reference):
    return ((value.double() - reference).abs().max() / reference.abs().max()).item()


def test_pool_and_probabilities(inception, graph, images):
    features = inception(images[:2])
    assert features.pool.shape == (2, 2048) and features.pool.dtype == torch.float32
    assert relative(features.pool, graph.pool) < 1e-5
    logits = graph.pool @ graph.weights["fc.weight"].t()  # no bias
    assert relative(features.probabilities, logits.softmax(1)) < 1e-4
    assert (logits + graph.weights["fc.bias"]).softmax(1).sub(features.probabilities).abs().max() > 1e-5


def test_spatial_features_are_the_third_17x17_blocks(inception, graph, images):
    """7 raw channels of mixed_6's 1x1 convolution, channels last, and no other block's."""
    spatial = inception(images[:2]).spatial
    assert spatial.shape == (2, 2023)
    found = {}
    for block in BLOCKS_17:
        raw = graph.raw[f"{block}.branch1x1"]  # (2,192,17,17)
        expected = torch.stack([raw[:, c, y, x] for y in range(17) for x in range(17) for c in range(7)], dim=1)
        found[block] = relative(spatial, expected)
    assert found.pop("Mixed_6d") < 1e-5
    assert min(found.values()) > 0.1
    assert (spatial < 0).any()


def test_the_other_tap_is_after_batch_norm_and_relu(inception_weights, graph, images):
    spatial = Inception(inception_weights, "activation")(images[:1]).spatial
    raw = graph.raw["Mixed_6d.branch1x1"][:1, :7]
    w = {n: graph.weights[f"Mixed_6d.branch1x1.bn.{n}"][:7].view(1, 7, 1, 1)
         for n in ("running_mean", "running_var", "weight", "bias")}  # fmt: skip
    expected = F.relu((raw - w["running_mean"]) / (w["running_var"] + 1e-3).sqrt() * w["weight"] + w["bias"])
    assert relative(spatial, expected.permute(0, 2, 3, 1).flatten(1)) < 1e-5


@pytest.mark.parametrize("size, count", [(1, 3), (7, 9)])
def test_batches_change_nothing(inception, images, size, count):
    """Of 7 and a ragged 2 as of all 9 together."""
    whole = inception(images[:count])
    parts = [inception(block) for block in images[:count].split(size)]
    for name in whole._fields:
        joined = torch.cat([getattr(part, name) for part in parts])
        assert relative(joined, getattr(whole, name).double()) < 1e-6, name


def test_settings_are_restored_and_the_generator_is_left_alone(inception_weights, inception, images):
    before = torch.get_rng_state()
    Inception(inception_weights)
    assert torch.equal(torch.get_rng_state(), before)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with full_float32("cpu"):
            exact = ("ieee", False)
            matmul, convolution = (
                torch.backends.cuda.matmul,
                getattr(torch.backends.cudnn, "conv", torch.backends.cudnn),
            )
            assert getattr(matmul, "fp32_precision", None) == "ieee" or matmul.allow_tf32 is False
            assert getattr(convolution, "fp32_precision", None) in exact or convolution.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", torch.bfloat16):
        inside = inception(images[:1])
    assert all(torch.equal(a, b) for a, b in zip(inside, inception(images[:1]), strict=True))


def test_what_it_refuses(inception, inception_weights, images):
    with pytest.raises(EvaluationError, match=r"uint8 \(B,3,H,W\)"):
        inception(images.float())
    lacking = {name: tensor for name, tensor in inception_weights.items() if name != "fc.weight"}
    with pytest.raises(WeightsError, match=r"1 missing: fc\.weight"):
        Inception(lacking)
    with pytest.raises(WeightsError, match="1 unexpected: other"):
        Inception({**inception_weights, "other": torch.zeros(1)})
    without_counters = {n: t for n, t in inception_weights.items() if not n.endswith("num_batches_tracked")}
    assert torch.equal(Inception(without_counters)(images[:1]).pool, inception(images[:1]).pool)
