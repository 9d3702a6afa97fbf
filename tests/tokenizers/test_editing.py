"""Regions of an image as tokens, and style transfer."""

import itertools

import numpy as np
import pytest
import tiny_hita
import torch

import vfmtok
from vfmtok.code import Ids, Latents, Segment
from vfmtok.errors import ConfigError
from vfmtok.tokenizers import editing


@pytest.mark.parametrize("name", editing.REGIONS)
def test_a_region_has_its_share_and_grows(name):
    masks = [editing.region(name, (6, 4), share) for share in (0, 0.25, 0.5, 1)]
    assert [mask.shape for mask in masks] == [(6, 4)] * 4
    assert not masks[0].any() and masks[3].all()
    assert abs(masks[2].mean() - 0.5) < 0.01
    assert all((small <= large).all() for small, large in itertools.pairwise(masks))


def test_sides_are_whole_lines():
    assert (editing.region("bottom", (4, 4), 0.25) == (np.arange(4) == 3)[:, None]).all()
    assert (editing.region("top", (4, 4), 0.25) == (np.arange(4) == 0)[:, None]).all()
    assert (editing.region("left", (4, 4), 0.5) == (np.arange(4) < 2)[None]).all()
    assert (editing.region("right", (4, 4), 0.5) == (np.arange(4) >= 2)[None]).all()
    for wrong in (("middle", 0.5), ("top", 1.5), ("top", float("nan"))):
        with pytest.raises(ConfigError):
            editing.region(wrong[0], (4, 4), wrong[1])


def test_kept_tokens_and_their_pixels():
    code = Ids((Segment(3, 8), Segment(4, 8, (2, 2))))
    redrawn = torch.tensor([[False, False], [True, False]])
    assert editing.kept_tokens(code, redrawn).tolist() == [True, True, True, True, True, False, True]
    images = torch.rand(2, 3, 6, 6) + 0.1
    given = editing.without_region(images, redrawn)
    assert (given[:, :, 3:, :3] == 0).all()
    assert torch.equal(given[:, :, :3], images[:, :, :3]) and torch.equal(given[:, :, 3:, 3:], images[:, :, 3:, 3:])
    for other in (Latents((4, 2, 2)), Ids((Segment(4, 8),))):
        with pytest.raises(ConfigError, match="no grid"):
            editing.grid_of(other)


def test_style_transfer_takes_each_kind_of_token_from_its_image():
    tokenizer = tiny_hita.tokenizer()
    content, style = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in (1, 2))
    with torch.no_grad():
        ids, style_ids = tokenizer.encode(content).ids, tokenizer.encode(style).ids
        assert (ids != style_ids).any()
        expected = tokenizer.decode(torch.cat([style_ids[:, :6], ids[:, 6:]], dim=1))
    assert torch.equal(vfmtok.transfer_style(tokenizer, content, style), expected)
    with torch.no_grad():
        assert torch.equal(vfmtok.transfer_style(tokenizer, content, content), tokenizer.decode(ids))
    with pytest.raises(ConfigError, match="holistic"):
        editing.styled_ids(Ids((Segment(4, 8, (2, 2)),)), ids, ids)
