"""CKNNA against the published tool's numbers, and against whole matrices and loops."""

import golden_rule
import numpy as np
import pytest
import torch
from torch import Tensor

from vfmtok.errors import EvaluationError
from vfmtok.metrics import neighbour_alignment
from vfmtok.metrics.neighbour_alignment import cka, cknna, mutual_neighbours, neighbours, prepared


def noise(case: str, *shape: int) -> Tensor:
    return 2 * golden_rule.tensor_for(f"token.noise.align_{case}", shape)


@pytest.fixture(scope="module")
def golden():
    return golden_rule.load("vfmvae/alignment.npz")


@pytest.fixture(scope="module")
def raw() -> dict[str, Tensor]:
    base = golden_rule.tensor_for("token.noise.align_base", (300, 20)) * 2
    a = base @ noise("a", 20, 32) + 0.5 * noise("na", 300, 32)
    a[3, 5] = 60
    a[7] *= 4
    b = torch.tanh(0.3 * base @ noise("b", 20, 48)) + 0.1 * noise("nb", 300, 48)
    return {"a": a, "b": b, "c": noise("c", 300, 16)}


@pytest.mark.parametrize("pair", ["ab", "ac", "aa", "ba"])
def test_published_numbers(golden, raw, pair):
    one, other = (prepared(raw[name]) for name in pair)
    assert cknna(one, other) == pytest.approx(float(golden[f"cknna_{pair}"]), abs=1e-6)
    assert cknna(one, other, biased=True) == pytest.approx(float(golden[f"cknna_biased_{pair}"]), abs=1e-6)


def test_published_preparation_and_neighbours(golden, raw):
    for name in ("a", "b"):
        np.testing.assert_allclose(raw[name][::30], golden[f"raw_{name}"], atol=1e-5)
    np.testing.assert_allclose(prepared(raw["a"])[::30], golden["prepared_a"], atol=1e-6)
    a, b = prepared(raw["a"]), prepared(raw["b"])
    assert cknna(a, b, k=5) == pytest.approx(float(golden["cknna_ab_top5"]), abs=1e-6)
    assert mutual_neighbours(neighbours(a), neighbours(b)) == pytest.approx(float(golden["mutual_knn_ab"]), abs=1e-7)


def test_published_alignment_of_all_pairs(golden, raw):
    assert cka(prepared(raw["a"]), prepared(raw["b"])) == pytest.approx(float(golden["cka_unbiased_ab"]), abs=1e-5)


def by_matrices(a: np.ndarray, b: np.ndarray, k: int, biased: bool) -> float:
    """The equations on whole matrices."""
    n = len(a)
    kernels = [x @ x.T for x in (a, b)]
    masks = []
    for kernel in kernels:
        searched = kernel.copy()
        if not biased:
            np.fill_diagonal(searched, -np.inf)
        mask = np.zeros_like(kernel)
        for row in range(n):
            mask[row, sorted(range(n), key=lambda column: -searched[row, column])[:k]] = 1
        masks.append(mask)
    centring = np.eye(n) - 1 / n

    def hsic(p, q):
        if biased:
            return np.trace(p @ centring @ q @ centring)
        p, q = p - np.diag(np.diag(p)), q - np.diag(np.diag(q))
        total = p.sum() * q.sum() / ((n - 1) * (n - 2))
        return ((p * q.T).sum() + total - 2 * (p @ q).sum() / (n - 2)) / (n * (n - 3))

    both = masks[0] * masks[1]
    own = [mask * kernel for mask, kernel in zip(masks, kernels, strict=True)]
    norm = np.sqrt(hsic(own[0], own[0]) * hsic(own[1], own[1]))
    return hsic(both * kernels[0], both * kernels[1]) / (norm + 1e-6)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("count", [11, 40])
def test_by_matrices(monkeypatch, biased, count):
    random = torch.Generator().manual_seed(count)
    base = torch.randn(count, 5, generator=random, dtype=torch.float64)
    a = prepared(base @ torch.randn(5, 8, generator=random, dtype=torch.float64))
    b = prepared(base + 0.5 * torch.randn(count, 5, generator=random, dtype=torch.float64))
    monkeypatch.setattr(neighbour_alignment, "_BLOCK", 7 * count)  # several blocks of rows
    if not biased:  # with all others as neighbours
        assert cka(a, b) == pytest.approx(by_matrices(a.numpy(), b.numpy(), count, biased), abs=1e-9)
    assert cknna(a, b, 4, biased) == pytest.approx(by_matrices(a.numpy(), b.numpy(), 4, biased), abs=1e-12)


def test_models_without_a_common_neighbour():
    """Two circles, walked in steps of which no two are near in both."""
    count = 30
    angles = torch.arange(count, dtype=torch.float64) * 2 * torch.pi / count
    first = torch.stack([angles.cos(), angles.sin()], dim=1)
    second = torch.stack([(11 * angles).cos(), (11 * angles).sin()], dim=1)
    near = neighbours(first, 2), neighbours(second, 2)
    assert mutual_neighbours(*near) == 0
    assert cknna(first, second, 2) == 0


def test_what_cannot_be_aligned_is_said():
    ten = torch.randn(10, 3)
    with pytest.raises(EvaluationError, match="needs 11 images or more, got 10"):
        cknna(prepared(ten), prepared(ten))
    with pytest.raises(EvaluationError, match="features of 10 and 9 images"):
        cknna(ten, ten[1:], 2)
    with pytest.raises(EvaluationError, match="all zero"):
        prepared(torch.cat([ten, torch.zeros(1, 3)]))
    with pytest.raises(EvaluationError, match="finite"):
        prepared(torch.full((4, 3), torch.nan))
