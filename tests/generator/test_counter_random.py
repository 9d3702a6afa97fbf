"""The counter-based generator: published vectors, and numbers that are uniform and unrelated."""

import numpy as np
import pytest
import torch

from vfmtok.generator.counter_random import philox4x32, uniforms


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
    words = philox4x32(tuple(torch.tensor(word) for word in counter), tuple(key))
    assert [word.item() for word in words] == expected


def test_uniform_and_independent():
    u = uniforms(7, torch.arange(2000), torch.arange(256))  # (2000,256)
    assert u.dtype == torch.float64
    assert u.min() >= 0 and u.max() < 1
    n = u.numel()
    counts = torch.histc(u, 1024, 0, 1)
    chi_square = ((counts - n / 1024) ** 2 / (n / 1024)).sum().item()
    assert abs(chi_square - 1023) < 5 * (2 * 1023) ** 0.5
    flat = u.numpy()
    for a, b in ((flat[:, :-1], flat[:, 1:]), (flat[:-1], flat[1:])):  # neighbouring steps and samples
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / n**0.5
    assert len(np.unique(flat)) == n


def test_a_number_depends_on_its_address_alone():
    u = uniforms(3, torch.arange(10), torch.arange(20))
    assert torch.equal(uniforms(3, torch.tensor([7, 2]), torch.tensor([19, 0])), u[[7, 2]][:, [19, 0]])
    assert (uniforms(4, torch.arange(10), torch.arange(20)) != u).all()
    assert (uniforms(3 + 2**32, torch.arange(10), torch.arange(20)) != u).all()
    assert (uniforms(3, torch.arange(10) + 2**32, torch.arange(20)) != u).all()
