"""What the demo finds in folders: every generator with its tokenizer."""

import json

import numpy as np
import pytest
import tiny_models
import tiny_vfmae
import torch

import vfmtok
from vfmtok.demo import studio as room
from vfmtok.demo.systems import open_systems
from vfmtok.errors import ConfigError
from vfmtok.weights.hashing import tokenizer_hash

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A quickstart's folder of ids, one step of a study of latents, a tokenizer alone, and what is none of these."""
    top = tmp_path_factory.mktemp("place")
    tiny_models.write_runs(top / "quick")
    tokenizer, steps = tiny_vfmae.tokenizer(), top / "study/steps"
    vfmtok.save_pretrained(tokenizer, steps / "tokenizer-1/out")
    vfmtok.save_pretrained(
        tiny_vfmae.dit(), steps / "generator-1/out", classes=list("abc"), tokenizer_hash=tokenizer_hash(tokenizer)
    )
    vfmtok.save_pretrained(tiny_vfmae.dit(), steps / "generator-2/out", tokenizer_hash="0" * 64)
    for kind in ("tokenizer", "generator"):
        (steps / f"{kind}-1/step.json").write_text(json.dumps({"kind": kind, "rows": "VFMAE + DiT (seed 0)"}))
    alone = tiny_vfmae.tokenizer(dim=96)
    vfmtok.save_pretrained(alone, top / "alone")
    (top / "quick/data").mkdir()
    (top / "quick/broken/checkpoints/step_0000001").mkdir(parents=True)
    return top


def test_every_generator_is_found_with_its_tokenizer(place):
    said = []
    found = open_systems([place / "quick", place / "study", place / "alone"], CPU, said.append)
    assert list(found) == ["VFMAE + DiT (seed 0)", "quick/gpt", "alone"]
    assert found["quick/gpt"].classes == ["apple", "bird", "cup"] and found["alone"].generator is None
    for studio in list(found.values())[:2]:
        assert studio.tokenizer.code == studio.generator.code
    assert [line.partition(":")[2].partition(":")[0] for line in said] == [
        " quick/broken",
        " study/steps/generator-2/out",
    ]
    assert "its tokenizer is not there (hash 000000000000...)" in said[1]
    assert list(open_systems([place], CPU, said.append)) == ["VFMAE + DiT (seed 0)", "place0/quick/gpt", "place0/alone"]
    with pytest.raises(ConfigError, match=r"no tokenizer that can be opened in .*data"):
        open_systems([place / "quick/data"], CPU)
    with pytest.raises(ConfigError, match=r"no folder .*nowhere"):
        open_systems([place / "nowhere"], CPU)


def test_latents_are_sampled_with_their_own_settings(place):
    (studio,) = open_systems([place / "study"], CPU, lambda line: None).values()
    pictures, about = room.sample(studio, 1, 2, seed=3, cfg_scale=2.0, steps=3, method="heun")
    latents = vfmtok.generate(tiny_vfmae.dit(), torch.full((2,), 1), seed=3, cfg_scale=2.0, steps=3, method="heun")
    expected = studio.tokenizer.decode_to_uint8(latents, 32).numpy()
    assert all((np.array(p)[::8, ::8] == e).all() for p, e in zip(pictures, expected, strict=True))
    assert about.startswith("2 x b, CFG 2, seed 3")


def test_each_system_has_a_page_with_its_settings(place, tmp_path):
    pytest.importorskip("gradio")
    from vfmtok.demo import page

    studios = open_systems([place / "quick", place / "study"], CPU, lambda line: None)
    built = page.build_all(studios, room.write_examples(tmp_path))
    assert [path for path, *_ in built.pages] == ["", "system-1", "system-2"]
    blocks = list(built.blocks.values())
    first, second = ({getattr(b, "label", None) for b in blocks if b.page == f"system-{n}"} for n in (1, 2))
    assert {"Guidance", "Steps", "Method", "Shift"} <= first and first.isdisjoint({"Temperature", "Cfg weaker"})
    assert {"Guidance", "Temperature"} <= second and second.isdisjoint({"Steps", "Method"})
    (links,) = [block.value for block in blocks if block.elem_id == "systems"]
    assert "[VFMAE + DiT (seed 0)](system-1)" in links and "[quick/gpt](system-2)" in links
    ours = [function for function in built.fns.values() if function.fn.__module__ == "vfmtok.demo.page"]
    assert {function.page for function in ours} == {"system-1", "system-2"}
    alone = page.build_all({"one": studios["quick/gpt"]}, room.write_examples(tmp_path))
    assert [path for path, *_ in alone.pages] == [""]
