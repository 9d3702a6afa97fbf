"""The counter-based generator: published vectors, and numbers that are uniform and unrelated."""

import numpy as np
import pytest
import torch

from vfmtok.generators.counter_random import exponentials, philox4x32


@pytest.mark.parametrize(
    "counter, key, expected",
    [  # the known-answer vectors that Salmon et al. publish with Random123
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, expected):
    counter, key, expected = ([int(word, 16) for word in words.split()] for words in (counter, key, expected))
    words = philox4x32(tuple(torch.tensor(word) for word in counter), tuple(key), rounds=10)
    assert [word.item() for word in words] == expected


def test_exponential_and_independent():
    e = torch.stack([exponentials(7, torch.arange(40), torch.tensor([step]), 256) for step in range(50)], 1)
    assert e.shape == (40, 50, 256) and e.dtype == torch.float32
    assert e.min() > 0
    u = 1 - (-e.double()).exp()  # uniform
    n = u.numel()
    counts = torch.histc(u, 1024, 0, 1)
    chi_square = ((counts - n / 1024) ** 2 / (n / 1024)).sum().item()
    assert abs(chi_square - 1023) < 5 * (2 * 1023) ** 0.5
    for axis in range(3):  # neighbouring samples, steps and tokens
        a, b = u.narrow(axis, 0, u.shape[axis] - 1), u.narrow(axis, 1, u.shape[axis] - 1)
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 5 / n**0.5
    small = (e < 1e-3).float().mean().item()  # the end that decides the draws of unlikely tokens
    assert small == pytest.approx(1e-3, abs=5 * (1e-3 / n) ** 0.5)


def test_the_logarithm_is_right_to_a_few_bits():
    """Beside float64, from the same words; also where u is too small for 1 - u to show it."""
    e = exponentials(5, torch.arange(64), torch.tensor([2]), 4096)
    blocks, samples = torch.arange(1024)[None], torch.arange(64)[:, None]
    words = torch.stack(philox4x32((blocks, torch.tensor([[2]]), samples, samples >> 32), (5, 0)), -1).flatten(1)
    exact = -torch.log1p(-(words.double() + 0.5) * 2.0**-32)
    small = exact < 10  # beyond, float32 has few numbers below 1
    assert ((e - exact).abs() / exact)[small].max() < 2e-3
    assert ((e - exact).abs() / exact)[exact < 0.1].max() < 3e-7 and exact.min() < 1e-5


def test_no_number_is_infinite():
    """The largest of some 20 million; float32 rounds its word up to 2^32. It counts where its token is the only one."""
    e = exponentials(0, torch.tensor([1369]), torch.tensor([0]), 8192)[0, 8158]
    assert 16 < e < 17


def test_a_number_depends_on_its_address_alone():
    step = torch.tensor([9])
    e = exponentials(3, torch.arange(10), step, 21)
    assert torch.equal(exponentials(3, torch.tensor([7, 2]), step, 21), e[[7, 2]])
    assert torch.equal(exponentials(3, torch.arange(10), step, 6), e[:, :6])
    for other in (
        exponentials(4, torch.arange(10), step, 21),
        exponentials(3 + 2**32, torch.arange(10), step, 21),
        exponentials(3, torch.arange(10) + 2**32, step, 21),
        exponentials(3, torch.arange(10), step + 1, 21),
    ):
        assert (other != e).all()
