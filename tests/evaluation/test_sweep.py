import json

import numpy as np
import pytest
from PIL import Image
from tiny_models import WORLD

from vfmtok.errors import ConfigError
from vfmtok.evaluation.results import Number, as_tree
from vfmtok.evaluation.samples import Samples
from vfmtok.evaluation.sweep import parse_scales, run_sweep
from vfmtok.generators.token_sampling import TokenSampling


def evaluate(samples: Samples, folder):
    """Results of a made-up law."""
    scale = samples.sampling.cfg_scale
    numbers = [Number(f"gFID ({samples.guidance})", 3 + 4 * (scale - 1.75) ** 2, "made up")]
    numbers += [Number(f"IS ({samples.guidance})", 200 * scale, "made up")]
    return {"job": samples.job, "numbers": as_tree(numbers), "warnings": [], "notes": [f"in {folder.name}"]}


def test_every_result_is_kept_and_drawn(tmp_path, capsys):
    run_sweep(evaluate, Samples(), parse_scales("1.0,1.5"), tmp_path, "GPT-B", WORLD)
    first = (tmp_path / "GPT-B-sweep-50000x256px-seed-0.png").read_bytes()
    run_sweep(evaluate, Samples(), parse_scales("1.75,2"), tmp_path, "GPT-B", WORLD)
    kept = json.loads((tmp_path / "GPT-B-sweep-50000x256px-seed-0.json").read_text())["scales"]
    assert list(kept) == ["1", "1.5", "1.75", "2"]
    assert kept["1"]["numbers"]["gFID (no CFG)"]["value"] == 3 + 4 * 0.75**2
    assert kept["1.75"]["numbers"]["gFID (CFG 1.75)"]["value"] == 3
    picture = tmp_path / "GPT-B-sweep-50000x256px-seed-0.png"
    assert picture.read_bytes() != first and np.asarray(Image.open(picture)).std() > 10
    assert "note: in GPT-B-cfg-1.75-50000x256px-seed-0" in capsys.readouterr().out


def test_a_curve_is_of_one_model(tmp_path, capsys):
    def of(model):
        return lambda samples, folder: {**evaluate(samples, folder), "job": {"GPT": model, **samples.job}}

    run_sweep(of("a"), Samples(), [1.0, 1.5], tmp_path, "GPT-B", WORLD)
    run_sweep(of("b"), Samples(), [1.75, 2.0], tmp_path, "GPT-B", WORLD)
    kept = json.loads((tmp_path / "GPT-B-sweep-50000x256px-seed-0.json").read_text())
    assert list(kept["scales"]) == ["1.75", "2"] and kept["job"]["GPT"] == "b"
    assert "was of another GPT and is replaced" in capsys.readouterr().out


def test_a_sweep_of_version_0_1_is_continued(tmp_path):
    """Its job had no settings but these."""
    old = {"count": 50000, "size": 256, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0, "classes": "random"}
    path = tmp_path / "GPT-B-sweep-50000x256px-seed-0.json"
    path.write_text(json.dumps({"job": {**old, "precision": "none"}, "scales": {"4": {"numbers": {}, "warnings": []}}}))
    run_sweep(evaluate, Samples(), [1.0, 1.5], tmp_path, "GPT-B", WORLD)
    assert list(json.loads(path.read_text())["scales"]) == ["1", "1.5", "4"]


def test_all_settings_are_looked_at_before_the_first_is_sampled(tmp_path):
    seen = []

    def note(samples, folder):
        seen.append((samples, folder.name))
        return evaluate(samples, folder)

    for scales in ([1.5, -1.0], [1.5, float("inf")], [1.5, float("nan")]):
        with pytest.raises(ConfigError, match="cfg_scale must be a number from 0"):
            run_sweep(note, Samples(), scales, tmp_path, "GPT-B", WORLD)
    assert not seen
    # Without guidance an interval changes no image: the folder, and what is in it, is that of any interval.
    run_sweep(note, Samples(TokenSampling(cfg_interval=5)), [1.0], tmp_path, "GPT-B", WORLD)
    run_sweep(note, Samples(), [1.0], tmp_path, "GPT-B", WORLD)
    assert seen[0] == seen[1]


def test_one_scale_is_no_sweep(tmp_path):
    run_sweep(evaluate, Samples(), [1.5], tmp_path, "GPT-B", WORLD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "1,,2", "high", "1.5,1.50"])
def test_scales_that_are_none(text):
    with pytest.raises(ConfigError, match="--cfg-scale"):
        parse_scales(text)


def test_a_size_with_a_slash_in_its_name_is_one_folder(tmp_path):
    run_sweep(evaluate, Samples(), [1.0, 1.5], tmp_path, "LightningDiT-XL/1", WORLD)
    assert all(path.name.startswith("LightningDiT-XL-1-sweep") for path in tmp_path.iterdir())
    places = []

    def note(samples, folder):
        places.append(folder)
        return evaluate(samples, folder)

    run_sweep(note, Samples(), [1.0], tmp_path, "LightningDiT-XL/1", WORLD)
    assert [place.parent for place in places] == [tmp_path]
