"""Every study that is shipped: all rows have recipes that build, and every published number its column."""

from pathlib import Path

import pytest

from vfmtok.commands.study import PARSERS
from vfmtok.study.config import load_study
from vfmtok.study.rows import resolve

STUDIES = sorted((Path(__file__).parents[2] / "configs/studies").rglob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: "-".join(path.with_suffix("").parts[-2:]))
def test_every_row_has_its_recipes(path):
    study = load_study(path)
    rows = resolve(study, PARSERS)
    assert len(rows) == len(study.rows) >= 2
    for row in rows:
        assert row.code.num_tokens > 0 and (row.generator is None or row.generator.generator.code.num_tokens > 0)
    assert all(row.published for row in study.rows)
