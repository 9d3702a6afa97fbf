"""What a table says of a row besides what was measured."""

import json

import pytest

import vfmtok
from vfmtok.study.facts import FACTS
from vfmtok.study.rows import resolve


@pytest.fixture
def rows(study):
    """``rows(**changes)``: the resolved rows of the tiny study."""
    from vfmtok.commands.study import PARSERS
    from vfmtok.study.config import load_study

    return lambda **changes: resolve(load_study(study(**changes)), PARSERS)


def test_bits_are_those_of_ids_or_of_stored_latents(rows):
    bits = FACTS["bits per image"].of
    assert bits(rows()[0], {}) == 16 * 6  # 16 tokens of 64 codes
    latents = {"name": "x", "tokenizer": "configs/vfmae/emoji64.yaml", "generator": "configs/diffusion/dit_small.yaml"}
    changes = {"rows": [latents], "tokenizer_set": [], "generator_set": []}
    assert bits(rows(**changes)[0], {}) == 16 * 8 * 8 * 16


def test_parameters_are_those_that_are_trained(rows):
    row = rows()[0]
    model = vfmtok.build_tokenizer(row.tokenizer)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert FACTS["tokenizer parameters"].of(row, {}) == pytest.approx(trained / 1e6, rel=1e-12)


def test_minutes_are_those_of_a_finished_step(rows, tmp_path):
    class Training:
        folder, done = tmp_path, False

    minutes, row = FACTS["tokenizer minutes"].of, rows()[0]
    assert minutes(row, {"tokenizer": Training}) is None
    Training.done = True
    (tmp_path / "step.json").write_text(json.dumps({"seconds": 90.0}))
    assert minutes(row, {"tokenizer": Training}) == 1.5
