import json

import numpy as np
import pytest
from PIL import Image
from tiny_models import WORLD

from vfmtok.errors import ConfigError
from vfmtok.evaluation.report import Number, as_tree
from vfmtok.evaluation.samples import Samples
from vfmtok.evaluation.sweep import parse_scales, run_sweep


def evaluate(samples: Samples, folder):
    """Results of a made-up law."""
    scale = samples.cfg_scale
    numbers = [Number(f"gFID ({samples.guidance})", 3 + 4 * (scale - 1.75) ** 2, "made up")]
    numbers += [Number(f"IS ({samples.guidance})", 200 * scale, "made up")]
    return {"numbers": as_tree(numbers), "warnings": [], "notes": [f"in {folder.name}"]}


def test_every_result_is_kept_and_drawn(tmp_path, capsys):
    run_sweep(evaluate, Samples(), parse_scales("1.0,1.5"), tmp_path, "GPT-B", WORLD)
    first = (tmp_path / "GPT-B-sweep-50000x256px-seed-0.png").read_bytes()
    run_sweep(evaluate, Samples(), parse_scales("1.75,2"), tmp_path, "GPT-B", WORLD)
    kept = json.loads((tmp_path / "GPT-B-sweep-50000x256px-seed-0.json").read_text())
    assert list(kept) == ["1", "1.5", "1.75", "2"]
    assert kept["1"]["numbers"]["gFID (no CFG)"]["value"] == 3 + 4 * 0.75**2
    assert kept["1.75"]["numbers"]["gFID (CFG 1.75)"]["value"] == 3
    picture = tmp_path / "GPT-B-sweep-50000x256px-seed-0.png"
    assert picture.read_bytes() != first and np.asarray(Image.open(picture)).std() > 10
    assert "note: in GPT-B-cfg-1.75-50000x256px-seed-0" in capsys.readouterr().out


def test_one_scale_is_no_sweep(tmp_path):
    run_sweep(evaluate, Samples(), [1.5], tmp_path, "GPT-B", WORLD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "1,,2", "high", "1.5,1.50"])
def test_scales_that_are_none(text):
    with pytest.raises(ConfigError, match="--cfg-scale"):
        parse_scales(text)
