"""Every study that is shipped: all rows have recipes that build, and every published number its column."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vfmtok
from vfmtok.commands.study import PARSERS
from vfmtok.encoders.config import EncoderConfig
from vfmtok.encoders.named import ENCODERS
from vfmtok.study.config import load_study
from vfmtok.study.rows import resolve

FOLDER = Path(__file__).parents[2] / "configs/studies"
STUDIES, PUBLISHED = sorted(FOLDER.rglob("*.yaml")), sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: "-".join(path.with_suffix("").parts[-2:]))
def test_every_row_has_its_recipes(path):
    study = load_study(path)
    rows = resolve(study, PARSERS)
    assert len(rows) == len(study.rows) >= 2
    for row in rows:
        assert all(count > 0 for count in row.code.shape)
        assert row.generator is None or row.generator.generator.code.shape == row.code.shape
    assert any(row.published for row in study.rows) or path.stem == "league"  # a comparison of our own


@pytest.mark.slow
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_models_of_published_scale_can_be_built(path):
    """On the meta device, where they need no memory: a recipe that resolves may still ask for an impossible model."""
    for row in resolve(load_study(path), PARSERS):
        with torch.device("meta"):
            tokenizer = vfmtok.build_tokenizer(without_weights(row.tokenizer))
            assert tokenizer.code == row.code, row.name
            assert all(tensor.is_meta for tensor in tokenizer.parameters())
            if row.generator is not None:
                generator = vfmtok.build_generator(row.generator.generator)
                assert generator.code == tokenizer.code, row.name


def without_weights(config: Any) -> Any:
    """Of a tokenizer: its encoders are built, and their files not looked for."""
    changes = {
        item.name: replace(section, weights="random", weights_sha256=None)
        for item in fields(config)
        if isinstance(section := getattr(config, item.name), EncoderConfig)
    }
    return replace(config, **changes)


def test_the_papers_tables_are_there():
    """All rows of each, with the numbers of the page of the system; one row besides, which tests an idea of Table 8."""
    counts = {f"table{n}": count for n, count in {1: 7, 4: 6, 5: 12, 6: 2, 7: 2, 8: 5, 9: 14, 10: 7}.items()}
    found = {path.stem: load_study(path) for path in STUDIES if path.parent.name == "studies"}
    assert {name: len(study.rows) for name, study in found.items()} == counts
    last = found["table9"].rows[-1]
    assert last.tokenizer_set == ("tokenizer.sampler.num_tokens=576",)
    assert last.published == {"rFID": 0.60, "rIS": 222.8, "gFID": 3.57, "gIS": 278.8}


def test_pilots_have_a_cell_for_every_token(root):
    """Table 1's encoders see other sizes, of which each gives the 24x24 cells of the grid."""
    rows = {row.name: row for row in resolve(load_study(root / "configs/studies/table1.yaml"), PARSERS)}
    pilots = [row for row in rows.values() if row.recipe is not None and row.tokenizer.kind == "vqgan"]
    assert len(pilots) == 3
    for row in pilots:
        patch = int(ENCODERS[row.tokenizer.encoder.name].timm_name.split("_patch")[1].split("_")[0])
        assert row.tokenizer.encoder.image_size // patch == row.tokenizer.side == 24
        assert row.code.num_tokens == row.generator.generator.num_tokens == 576


def test_the_row_without_a_frozen_encoder_has_a_frozen_target(root):
    for name in ("table4", "small/table4", "small/table4_quick"):
        *_, last = resolve(load_study(root / f"configs/studies/{name}.yaml"), PARSERS)
        assert not last.tokenizer.encoder.frozen and last.tokenizer.encoder.starts_random
        assert last.tokenizer.feature_encoder.frozen and not last.tokenizer.feature_encoder.starts_random


def test_the_example_of_the_page_is_a_study(root, tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (root / "docs/studies.md").read_text(), flags=re.DOTALL)
    (tmp_path / "study.yaml").write_text(text)
    points, windows = resolve(load_study(tmp_path / "study.yaml"), PARSERS)
    assert (points.tokenizer.sampler.attention, windows.tokenizer.sampler.attention) == ("deformable", "windowed")
