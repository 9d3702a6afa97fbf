"""Position tables: resampling against bicubic interpolation written out, and the sine-cosine start."""

import math

import numpy as np
import pytest
import torch

from vfmtok.layers.positions import position_table, resample_by_scale, sincos_2d


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, PyTorch's."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def slow_resample(table: np.ndarray, grid: int) -> np.ndarray:
    """(G,G,D) -> (grid,grid,D) at source positions (i + 0.5) / scale - 0.5, scale = (grid + 0.1) / G."""
    stored = len(table)
    matrix = np.zeros((grid, stored))
    for i in range(grid):
        source = (i + 0.5) * stored / (grid + 0.1) - 0.5
        for tap in range(math.floor(source) - 1, math.floor(source) + 3):
            matrix[i, min(max(tap, 0), stored - 1)] += cubic(source - tap)
    return np.einsum("ia,jb,abd->ijd", matrix, matrix, table)


@pytest.mark.parametrize(("stored", "grid"), [(24, 21), (24, 16), (16, 21), (37, 24), (2, 4)])
def test_resample_by_scale(stored, grid):
    table = torch.randn(1, stored * stored, 3, generator=torch.Generator().manual_seed(0))
    expected = slow_resample(table.double().reshape(stored, stored, 3).numpy(), grid)
    actual = resample_by_scale(table, grid).reshape(grid, grid, 3).double().numpy()
    assert np.abs(actual - expected).max() < 1e-4


def test_same_grid_is_untouched():
    table = torch.randn(1, 81, 4)
    assert resample_by_scale(table, 9) is table


def test_sincos_tells_rows_from_columns():
    table = sincos_2d(5, 16).reshape(5, 5, 16)
    assert torch.allclose(table.norm(dim=-1), torch.ones(5, 5))
    assert torch.equal(table[2, 0, :8], table[2, 4, :8]), "the first half encodes the row"
    assert torch.equal(table[0, 3, 8:], table[4, 3, 8:]), "the second half encodes the column"
    similarity = table.flatten(0, 1) @ table.flatten(0, 1).t()
    assert (similarity - torch.eye(25) * 2).argmax(-1).ne(similarity.argmax(-1)).all(), (
        "every position is its own nearest"
    )


def test_random_tables_have_unit_rows():
    torch.manual_seed(0)
    assert position_table(400, 256, "random").norm(dim=-1).mean().item() == pytest.approx(1, abs=0.01)
