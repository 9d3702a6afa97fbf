"""The sampling core against the published outputs, and against a float64 loop over single points."""

import math

import golden_rule
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vfmtok.layers import deformable_attention
from vfmtok.layers.deformable_attention import DeformableAttention, deformable_sampling

UNEQUAL = [(5, 7), (3, 3), (1, 4), (1, 1)]


def make_inputs(grids, batch=2, queries=6, heads=3, points=2, channels=4, dtype=torch.float64):
    """Random inputs; a fifth of the locations lie outside the image, some far."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, queries, heads, len(grids), points)
    value = torch.randn(batch, sum(h * w for h, w in grids), heads, channels, generator=generator, dtype=dtype)
    locations = torch.rand(*shape, 2, generator=generator, dtype=dtype) * 1.3 - 0.15
    locations[0, 0] *= 40
    weights = torch.randn(shape, generator=generator, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (value, locations, weights)]


def naive_sampling(value, grids, locations, weights):
    """One bilinear read at a time, in Python and float64."""
    value, locations, weights = (x.detach().double().numpy() for x in (value, locations, weights))
    batch, queries, heads, levels, points, _ = locations.shape
    starts = np.cumsum([0, *(h * w for h, w in grids)])
    out = np.zeros((batch, queries, heads, value.shape[-1]))
    for b, q, h, level, p in np.ndindex(batch, queries, heads, levels, points):
        height, width = grids[level]
        x, y = locations[b, q, h, level, p] * [width, height] - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[b, q, h, level, p]
                    out[b, q, h] += share * value[b, starts[level] + row * width + column, h]
    return torch.from_numpy(out).flatten(2)


def grid_sample_sampling(value, grids, locations, weights):
    """The usual PyTorch formulation, one ``grid_sample`` a level: a reference for gradients."""
    out = 0
    levels = value.split([h * w for h, w in grids], dim=1)
    for level, (height, width) in enumerate(grids):
        feature_map = levels[level].permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (height, width))  # (B*H,C,h,w)
        points = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B*H,Q,P,2)
        samples = F.grid_sample(feature_map, points, align_corners=False)  # (B*H,C,Q,P)
        share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]  # (B*H,1,Q,P)
        out = out + (samples * share).sum(-1)
    return out.unflatten(0, value.shape[::2][:2]).permute(0, 3, 1, 2).flatten(2)


@pytest.mark.parametrize("case", ["deform_attn_a.npz", "deform_attn_b.npz"])
def test_published_outputs(case):
    golden = {name: torch.as_tensor(array) for name, array in golden_rule.load(case).items()}
    grids = [tuple(grid) for grid in golden["shapes"].tolist()]
    value, locations, weights = (golden[name].requires_grad_() for name in ("value", "locations", "weights"))
    out = deformable_sampling(value, grids, locations, weights)
    out.backward(golden["grad_output"])

    def close(actual, expected):
        return (actual - expected).abs().max() < 1e-5 * expected.abs().max()

    assert close(out, golden["output"])
    assert close(value.grad.sum(1), golden["grad_value_sum"])
    assert value.grad.double().norm().item() == pytest.approx(golden["grad_value_norm"].item(), rel=1e-5)
    assert close(locations.grad, golden["grad_locations"])
    assert close(weights.grad, golden["grad_weights"])


@pytest.mark.parametrize("grids", [UNEQUAL, [(4, 4)] * 3, [(6, 5)]])
def test_against_naive_loop(grids):
    value, locations, weights = make_inputs(grids)
    expected = naive_sampling(value, grids, locations, weights)
    assert torch.allclose(deformable_sampling(value, grids, locations, weights), expected, atol=1e-12)
    single = (tensor.detach().float() for tensor in (value, locations, weights))
    out = deformable_sampling(next(single), grids, *single)
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), expected, atol=3e-5)


@pytest.mark.parametrize("grids", [UNEQUAL, [(4, 4)] * 3])
def test_gradients_against_grid_sample(grids):
    inputs = make_inputs(grids)
    out = deformable_sampling(inputs[0], grids, *inputs[1:])
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(grid_sample_sampling(inputs[0], grids, *inputs[1:]), inputs, grad)
    for actual, reference in zip(torch.autograd.grad(out, inputs, grad), expected, strict=True):
        assert torch.allclose(actual, reference, atol=1e-10)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_the_wanted_gradient(wanted):
    """A frozen input must not change the gradient of the others."""
    grids = [(4, 4)] * 2
    full = make_inputs(grids)
    part = [tensor.detach().requires_grad_(index == wanted) for index, tensor in enumerate(full)]
    deformable_sampling(full[0], grids, *full[1:]).sum().backward()
    deformable_sampling(part[0], grids, *part[1:]).sum().backward()
    assert torch.equal(part[wanted].grad, full[wanted].grad)


def test_weight_gradient_of_other_devices():
    """The operator used off the CPU, run on the CPU: the same gradient as the one used there."""
    generator = torch.Generator().manual_seed(0)
    grad, table = torch.randn(9, 8, generator=generator), torch.randn(20, 8, generator=generator)
    rows = torch.randint(0, 20, (9, 12), generator=generator, dtype=torch.int32)
    expected = (table[rows.long()] * grad[:, None]).sum(-1)
    assert torch.allclose(deformable_attention._weight_gradient_sampled(grad, table, rows), expected, atol=1e-5)
    assert torch.allclose(deformable_attention._weight_gradient_gathered(grad, table, rows), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float32(dtype):
    grids = [(24, 24)] * 2
    low = [tensor.detach().to(dtype).requires_grad_() for tensor in make_inputs(grids)]
    high = [tensor.detach().float().requires_grad_() for tensor in low]
    out = deformable_sampling(low[0], grids, *low[1:])
    reference = deformable_sampling(high[0], grids, *high[1:])
    assert out.dtype == dtype
    assert torch.equal(out, reference.to(dtype))
    reference.backward(grad := torch.randn_like(out).float())
    out.backward(grad.to(dtype))
    for a, b in zip(low, high, strict=True):
        assert a.grad.dtype == dtype
        assert torch.allclose(a.grad.float(), b.grad, rtol=2e-2, atol=2e-2 * b.grad.abs().max())


def test_autocast_changes_nothing():
    grids = [(24, 24)]
    inputs = [tensor.detach().float() for tensor in make_inputs(grids)]
    expected = deformable_sampling(inputs[0], grids, *inputs[1:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(deformable_sampling(inputs[0], grids, *inputs[1:]), expected)


def test_compiles_without_graph_breaks():
    """Traced whole, forward and backward, by ``torch.compile``; the backend needs no C++ compiler."""
    grids = UNEQUAL
    inputs = [tensor.detach().float().requires_grad_() for tensor in make_inputs(grids)]
    compiled = torch.compile(lambda v, x, w: deformable_sampling(v, grids, x, w), backend="aot_eager", fullgraph=True)
    out, expected = compiled(*inputs), deformable_sampling(inputs[0], grids, *inputs[1:])
    assert torch.allclose(out, expected, atol=1e-6)
    grad = torch.randn_like(out)
    for a, b in zip(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_compiles_with_inductor():
    grids = [(24, 24)] * 4
    inputs = [tensor.detach().float().requires_grad_() for tensor in make_inputs(grids)]
    compiled = torch.compile(lambda v, x, w: deformable_sampling(v, grids, x, w), fullgraph=True)
    out, expected = compiled(*inputs), deformable_sampling(inputs[0], grids, *inputs[1:])
    assert torch.allclose(out, expected, atol=1e-5)
    out.sum().backward()


def test_operator_is_well_formed():
    """PyTorch's own check: schema, fake tensors, autograd registration."""
    table, weights = torch.randn(10, 4).requires_grad_(), torch.rand(3, 5).requires_grad_()
    rows = torch.randint(0, 10, (3, 5), dtype=torch.int32)
    torch.library.opcheck(deformable_attention.weighted_row_sum, (table, rows, weights))


def test_not_finite_locations():
    """NaN in a location or weight makes its own query NaN and leaves the others alone; nothing crashes."""
    grids = UNEQUAL
    value, locations, weights = (tensor.detach() for tensor in make_inputs(grids))
    expected = deformable_sampling(value, grids, locations, weights)
    locations[0, 1, 2, 0, 0, 0] = float("nan")
    weights[1, 3, 0, 1, 1] = float("nan")
    locations[1, 5, 1, 2, 0, 1] = float("inf")
    out = deformable_sampling(value, grids, locations, weights)
    heads_out, heads_expected = out.unflatten(-1, (3, -1)), expected.unflatten(-1, (3, -1))
    touched = torch.zeros(2, 6, 3, dtype=torch.bool)
    touched[0, 1, 2] = touched[1, 3, 0] = True
    assert heads_out[touched].isnan().all()
    touched[1, 5, 1] = True
    assert torch.equal(heads_out[~touched], heads_expected[~touched])


def test_empty_batch():
    value, locations, weights = (tensor[:0] for tensor in make_inputs([(4, 4)]))
    assert deformable_sampling(value, [(4, 4)], locations, weights).shape == (0, 6, 12)


def test_wrong_shapes_are_named():
    value, locations, weights = make_inputs([(4, 4)])
    with pytest.raises(ValueError, match=r"do not fit together on grids \[\(4, 5\)\] \(20 cells\)"):
        deformable_sampling(value, [(4, 5)], locations, weights)


def test_initial_sampling_points():
    """Heads look in the 8 compass directions, point p is p + 1 cells away, all weights equal."""
    attention = DeformableAttention(dim=16, heads=8, levels=2, points=3)
    references = torch.tensor([[0.25, 0.75]])
    locations, weights = attention.sampling_points(torch.randn(1, 1, 16), references, [(10, 20), (5, 5)])
    assert torch.allclose(weights, torch.full_like(weights, 1 / 6))
    offsets = (locations - references[0]) * torch.tensor([[[20.0, 10.0]], [[5.0, 5.0]]])  # in cells
    compass = torch.tensor([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]).float()
    for point in range(3):
        for level in range(2):
            assert torch.allclose(offsets[0, 0, :, level, point], compass * (point + 1), atol=1e-5)
