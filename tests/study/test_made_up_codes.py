"""The made-up codes on which a study measures how fast a generator trains."""

import pytest

from vfmtok.code import Ids, Latents, Segment
from vfmtok.data.latent_cache import LatentCache, open_cache
from vfmtok.study.speed import MADE_UP, _write_made_up_codes


@pytest.mark.parametrize("code", [Ids((Segment(6, 8), Segment(4, 30))), Latents((3, 2, 4))])
def test_made_up_codes_are_a_cache_of_this_code(tmp_path, code):
    _write_made_up_codes(tmp_path / "train", code, 3)
    cache = open_cache(tmp_path / "train")
    assert cache.code == code and len(cache) == MADE_UP and cache.labels.unique().tolist() == [0, 1, 2]
    if isinstance(cache, LatentCache):
        assert cache.statistics.mean.shape == (3, 2, 4)
    else:
        assert [int((counts > 0).sum()) for counts in cache.code_counts()] == [8, 30]
