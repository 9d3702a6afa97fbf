"""Deformable attention (Zhu et al., 2021, arXiv 2010.04159) in PyTorch, without a compiled extension.

Every (query, head) reads a few points of every feature map, bilinearly, and sums them with its
own weights. A point is four cells, so the whole read is one sum of 4 * L * P weighted rows of the
value table: a sparse row times a dense matrix, which ``embedding_bag`` does in one pass over
contiguous rows for all levels at once.

Shapes: B batch, Q queries, H heads, L levels, P points, C channels of a head, S cells of all levels.
"""

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.layers.precision import at_least_float32, linear_in_float32

# The one sparse operator used below is stable in use and tested here against a float64 loop.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def deformable_sampling(value: Tensor, grids: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples: out[b,q,h] = sum_{l,p} weights * value_l(locations).

    Args:
        value: (B,S,H,C), the levels one after the other, each in row order.
        grids: (height, width) of every level; their products sum to S. Sizes may differ.
        locations: (B,Q,H,L,P,2) as (x, y); 0 and 1 are the outer edges of the map, so that cell
            centres lie at (i + 0.5) / size. What lies outside reads zero.
        weights: (B,Q,H,L,P).

    Returns:
        (B,Q,H*C) in the dtype of ``value``.

    Dtypes: the computation is float32 (float64 when any input is) whatever the inputs are and
    also under autocast, since bfloat16 can't tell neighbouring cells apart. Gradients reach
    ``value``, ``locations`` and ``weights`` in their own dtypes.
    """
    batch, cells, heads, channels = value.shape
    _check_shapes(value, grids, locations, weights)
    inputs = (value, locations, weights)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32
    with torch.autocast(value.device.type, enabled=False):
        rows, row_weights = _bilinear_rows(grids, locations.to(dtype), weights.to(dtype), cells)
        table = value.to(dtype).reshape(batch * cells * heads, channels)  # row (b,s,h)
        out = weighted_row_sum(table, rows, row_weights)  # (B*Q*H,C)
    return out.view(batch, locations.shape[1], heads * channels).to(value.dtype)


def _check_shapes(value: Tensor, grids: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    cells = sum(height * width for height, width in grids)
    expected = (value.shape[0], locations.shape[1], value.shape[2], len(grids), *locations.shape[4:5])
    if value.shape[1] != cells or locations.shape != (*expected, 2) or weights.shape != expected:
        raise ValueError(
            f"deformable_sampling: value {tuple(value.shape)}, locations {tuple(locations.shape)} and weights "
            f"{tuple(weights.shape)} do not fit together on grids {list(grids)} ({cells} cells)"
        )


def _bilinear_rows(
    grids: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor, cells: int
) -> tuple[Tensor, Tensor]:
    """The rows of the (B*S*H, C) value table that each (b,q,h) sums, and their weights.

    Returns rows (B*Q*H, 4*L*P) integer and weights (B*Q*H, 4*L*P), zero for cells outside the map.
    One matrix per coordinate and corner: long contiguous rows are several times faster to compute
    on than trailing axes of length 2.
    """
    batch, queries, heads, _, points, _ = locations.shape
    device = locations.device
    # int32 halves the traffic and the sort of the backward pass
    index = torch.int32 if batch * cells * heads < 2**31 else torch.int64
    starts = [sum(h * w for h, w in grids[:level]) for level in range(len(grids))]
    height, width, first_cell = (
        _fill_levels(numbers, points, device, index)  # (L*P,)
        for numbers in ([h for h, _ in grids], [w for _, w in grids], starts)
    )
    sample = torch.arange(batch, device=device, dtype=index)[:, None, None] * (cells * heads)
    head = torch.arange(heads, device=device, dtype=index)
    first_row = (sample + head).expand(-1, queries, -1).reshape(-1, 1) + first_cell * heads  # (B*Q*H,L*P)

    x, y = locations.flatten(3, 4).flatten(0, 2).unbind(-1)  # 2 x (B*Q*H,L*P)
    weights = weights.flatten(3, 4).flatten(0, 2)  # (B*Q*H,L*P)
    left, right, share_left, share_right = _neighbours(x, width.to(x.dtype))
    top, bottom, share_top, share_bottom = _neighbours(y, height.to(x.dtype))
    left, right = (left * heads).to(index), (right * heads).to(index)
    row_stride = width * heads
    top, bottom = first_row + top.to(index) * row_stride, first_row + bottom.to(index) * row_stride
    share_top, share_bottom = share_top * weights, share_bottom * weights
    rows = torch.cat([top + left, top + right, bottom + left, bottom + right], dim=1)
    shares = [share_top * share_left, share_top * share_right, share_bottom * share_left, share_bottom * share_right]
    return rows, torch.cat(shares, dim=1)


def _fill_levels(numbers: Sequence[int], points: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One number per level, repeated for its points: (L*P,). Filled on the device: copying a list there would
    make the host wait for it in every layer."""
    return torch.cat([torch.full((points,), number, device=device, dtype=dtype) for number in numbers])


def _neighbours(position: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two cells beside ``position`` (in [0,1] of an axis of ``size`` cells), clamped to the axis,
    and their linear shares, 0 for a cell that had to be clamped."""
    pixel = position * size - 0.5  # cell centres at whole numbers
    low = pixel.detach().floor()
    fraction = pixel - low  # NaN where the position is: the shares stay NaN, only the cells must be valid
    last = size - 1
    low_share = torch.where((low < 0) | (low > last), 0, 1 - fraction)
    high_share = torch.where((low < -1) | (low >= last), 0, fraction)
    low = low.nan_to_num(0.0)
    low_cell, high_cell = torch.minimum(low.clamp(min=0), last), torch.minimum((low + 1).clamp(min=0), last)
    return low_cell, high_cell, low_share, high_share


@torch.library.custom_op("vfmtok::weighted_row_sum", mutates_args=())
def weighted_row_sum(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """out[n] = sum_k weights[n,k] * table[rows[n,k]]: table (R,C), rows and weights (N,K) -> (N,C).

    A custom operator because the backward pass of ``embedding_bag`` is several times slower on
    the CPU than its forward pass; both gradients below are again single passes.
    """
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


@weighted_row_sum.register_fake
def _(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    return table.new_empty(rows.shape[0], table.shape[1])


@torch.library.custom_op("vfmtok::weighted_row_sum_backward", mutates_args=())
def _weighted_row_sum_backward(
    grad: Tensor, table: Tensor, rows: Tensor, weights: Tensor, need_table: bool, need_weights: bool
) -> tuple[Tensor, Tensor]:
    """Gradients (R,C) of the table and (N,K) of the weights; an empty tensor where not needed."""
    grad = grad.contiguous()
    grad_table = _table_gradient(grad, rows, weights, table.shape[0]) if need_table else table.new_empty(0)
    weight_gradient = _weight_gradient_sampled if grad.device.type == "cpu" else _weight_gradient_gathered
    grad_weights = weight_gradient(grad, table, rows) if need_weights else weights.new_empty(0)
    return grad_table, grad_weights


def _table_gradient(grad: Tensor, rows: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    """The transposed sum, gathered by table row after a sort: no atomics, so it is deterministic."""
    sorted_rows, order = rows.flatten().sort(stable=True)
    first = torch.searchsorted(sorted_rows, torch.arange(num_rows, device=rows.device, dtype=rows.dtype))
    bags = (order // rows.shape[1]).to(rows.dtype)
    weights = weights.flatten()[order]
    return F.embedding_bag(bags, grad, first.to(rows.dtype), mode="sum", per_sample_weights=weights)


def _weight_gradient_sampled(grad: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """grad_weights[n,k] = <grad[n], table[rows[n,k]]>: the dense product, computed only at ``rows``.

    On the CPU three times faster than ``_weight_gradient_gathered``, the same in other words.
    """
    values = torch.zeros(rows.numel(), dtype=grad.dtype, device=grad.device)
    size = (len(rows), len(table))
    starts = _row_starts(rows, rows.numel() + 1)
    pattern = torch.sparse_csr_tensor(starts, rows.flatten(), values, size, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, grad, table.t(), beta=0).values().view_as(rows)


def _weight_gradient_gathered(grad: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """The operator of ``embedding_bag``'s own backward pass, which has a kernel for every device."""
    starts = _row_starts(rows, rows.numel())
    bags = torch.arange(len(rows), device=rows.device, dtype=rows.dtype).repeat_interleave(rows.shape[1])
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, table, rows.flatten(), starts, bags, 0, -1
    ).view_as(rows)


def _row_starts(rows: Tensor, end: int) -> Tensor:
    return torch.arange(0, end, rows.shape[1], device=rows.device, dtype=rows.dtype)


@_weighted_row_sum_backward.register_fake
def _(grad, table, rows, weights, need_table, need_weights):
    return (
        torch.empty_like(table) if need_table else table.new_empty(0),
        torch.empty_like(weights) if need_weights else weights.new_empty(0),
    )


def _save_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    table, rows, weights = ctx.saved_tensors
    need_table, _, need_weights = ctx.needs_input_grad
    grads = _weighted_row_sum_backward(grad, table, rows, weights, need_table, need_weights)
    return grads[0] if need_table else None, None, grads[1] if need_weights else None


weighted_row_sum.register_autograd(_backward, setup_context=_save_for_backward)


class DeformableAttention(nn.Module):
    """Queries predict, per head and level, where to look and how much each look counts."""

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._initialise()

    def _initialise(self) -> None:
        """Head h looks in compass direction h; point p is p + 1 cells away; all weights equal."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (H,2) as (x,y)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)  # onto the unit square
        steps = torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        offsets = directions.view(-1, 1, 1, 2) * steps  # (H,1,P,2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        for zero in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zero)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def sampling_points(
        self, queries: Tensor, references: Tensor, grids: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Where queries (B,Q,D) at references (Q,2) look, in float32: locations (B,Q,H,L,P,2) as (x,y), in [0,1]
        inside the image, and weights (B,Q,H,L,P) that sum to 1 over a head's points."""
        shape = (self.heads, self.levels, self.points)
        offsets = linear_in_float32(self.sampling_offsets, queries).unflatten(-1, (*shape, 2))  # (B,Q,H,L,P,2) in cells
        scores = linear_in_float32(self.attention_weights, queries).unflatten(-1, (self.heads, -1))  # (B,Q,H,L*P)
        weights = scores.softmax(dim=-1).unflatten(-1, shape[1:])  # (B,Q,H,L,P)
        width = _fill_levels([w for _, w in grids], 1, queries.device, offsets.dtype)
        height = _fill_levels([h for h, _ in grids], 1, queries.device, offsets.dtype)
        size = torch.stack([width, height], dim=-1)[:, None]  # (L,1,2)
        return at_least_float32(references).view(1, -1, 1, 1, 1, 2) + offsets / size, weights

    def forward(self, queries: Tensor, references: Tensor, maps: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """queries (B,Q,D), references (Q,2), maps (B,S,D) with S the cells of all grids -> (B,Q,D)."""
        locations, weights = self.sampling_points(queries, references, grids)
        value = self.value_proj(maps).unflatten(-1, (self.heads, -1))  # (B,S,H,D/H)
        return self.output_proj(deformable_sampling(value, grids, locations, weights))  # (B,Q,D)
