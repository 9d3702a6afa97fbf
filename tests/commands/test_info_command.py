import json
import os
import subprocess
import sys

import pytest
import yaml
from tiny_gpt import tiny_config as tiny_gpt_config

from vfmtok.cli import main
from vfmtok.config import config_from_dict, save_config
from vfmtok.generators import build_generator
from vfmtok.generators.rar.config import RARConfig
from vfmtok.tokenizers import load_config
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import TokenizerRecipe


def _facts(capsys, *arguments) -> dict:
    assert main(["info", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_configuration_a_recipe_and_a_run_say_the_same(capsys, root, tmp_path, tiny_config):
    plain = _facts(capsys, root / "configs/tiny.yaml")
    save_config(TokenizerRecipe(tokenizer=tiny_config()), tmp_path / "recipe.yaml")
    checkpoint = tmp_path / "run/checkpoints/step_0000002"
    checkpoint.mkdir(parents=True)  # no weights beside it
    save_config(TokenizerRecipe(tokenizer=tiny_config()), checkpoint / "config.yaml")
    for source in (tmp_path / "recipe.yaml", tmp_path, tmp_path / "run", checkpoint):
        found = _facts(capsys, source)
        assert {**found, "model": ""} == {**plain, "model": ""}
    assert plain["kind"] == "tokenizer" and plain["frozen"] == ["encoder"] and plain["tokens_per_image"] == 16
    assert plain["flops"] == plain["flops_encode"] + plain["flops_decode"]


def test_a_generator_by_name_recipe_and_configuration(capsys, tmp_path):
    config = tiny_gpt_config()
    save_config(config, tmp_path / "gpt.yaml")
    save_config(GeneratorRecipe(generator=config), tmp_path / "recipe.yaml")
    changes = [f"--set={name}={getattr(config, name)}" for name in ("n_layer", "n_head", "dim", "vocab_size")]
    changes += ["--set=num_tokens=16", "--set=num_classes=10"]
    found = [_facts(capsys, *source) for source in (["GPT-B", *changes], [tmp_path / "gpt.yaml"], [tmp_path])]
    assert found[0]["parts"] == found[1]["parts"] == found[2]["parts"]
    assert not any(facts["notes"] for facts in found)
    assert found[0]["kv_cache_bytes_per_image"] == {"fp32": 4 * 2 * 3 * 17 * 64, "bf16": 2 * 2 * 3 * 17 * 64}


def test_what_a_generators_recipe_leaves_to_its_tokens_is_said(capsys, root):
    recipe = root / "configs/vfmtok/emoji64_gpt.yaml"
    assert "vocab_size 16384, num_tokens 256, num_classes 1000" in _facts(capsys, recipe)["notes"][0]
    data = ["--set=vocab_size=512", "--set=num_tokens=64", "--set=num_classes=9"]
    assert _facts(capsys, recipe, *data)["notes"] == []


@pytest.mark.slow
def test_configurations_that_are_shipped_have_a_table(capsys, root):
    small = [root / f"configs/vfmtok/{name}.yaml" for name in ("emoji64", "emoji64_gpt")]
    for path in [*sorted((root / "configs").glob("*.yaml")), *small, root / "configs/vqgan/vq16.yaml"]:
        assert main(["info", str(path)]) == 0
        table = capsys.readouterr().out
        assert "Parts, FLOPs for one image:" in table and all(len(line) <= 140 for line in table.splitlines())
        if path.name == "vit_transformer.yaml":
            assert "73,352,367 values (73.35 M)" in table
            assert load_config(path).encoder.name in table


def test_every_family_is_known_by_its_kind(capsys, root, tmp_path):
    """In a recipe, in a file that is the model alone, and by a named size; --set has the recipe's sections."""
    section = {"kind": "vqgan", "image_size": 32, "z_channels": 32, "encoder": {"kind": "cnn", "channels": 32}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"tokenizer": section}))
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(section))
    found = [
        _facts(capsys, tmp_path / name, "--set=tokenizer.pixel_decoder.channels=32")
        for name in ("recipe.yaml", "model.yaml")
    ]
    assert {**found[0], "model": ""} == {**found[1], "model": ""} and found[0]["family"] == "vqgan"
    assert found[0]["tokens_per_image"] == 4 and found[0]["frozen"] == [] and found[0]["encoder_px"] is None
    assert sum(part["parameters"] for part in found[0]["parts"]) == found[0]["parameters"]
    fields = ["n_layer=1", "n_head=2", "dim=16", "ffn_hidden=32", "vocab_size=32", "num_tokens=16", "num_classes=3"]
    changed = _facts(capsys, "RAR-B", *(f"--set=generator.{field}" for field in fields))
    (tmp_path / "rar.yaml").write_text("kind: rar\n" + "\n".join(field.replace("=", ": ") for field in fields))
    assert {**changed, "model": ""} == {**_facts(capsys, tmp_path / "rar.yaml"), "model": ""}
    rar = build_generator(config_from_dict(changed["config"], RARConfig))
    assert changed["kind"] == "rar" and changed["parameters"] == sum(p.numel() for p in rar.parameters())


def test_the_largest_generator_takes_no_memory(tmp_path):
    code = "import resource, sys; from vfmtok.cli import main; code = main(['info', 'GPT-7B']); "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "6,614,589,440" in done.stdout
    kib = int(done.stdout.split()[-1]) // (1024 if sys.platform == "darwin" else 1)
    assert kib < 3 * 2**20 < 6_614_589_440 * 2 / 2**10  # PyTorch itself; the weights are 25 GiB


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["GPT-Q"], "is called GPT-Q (closest match: 'GPT-"),
        (["nowhere"], "no file, folder or generator is called nowhere"),
        (["."], "holds no model"),
        (["weights.pt"], "is no configuration"),
        (["broken.yaml"], "broken.yaml: not valid YAML"),
        (["wrong.yaml"], "dimm"),
        (["GPT-B", "--set", "dim=7"], "dim must be a multiple"),
    ],
)
def test_what_is_no_model_is_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"\x80")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "wrong.yaml").write_text("dimm: 3")
    assert main(["info", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.slow
def test_saved_models_and_the_published_one(capsys, tmp_path, root, tiny_config):
    import tiny_models

    import vfmtok

    with pytest.warns(UserWarning, match="the frozen encoder is not saved"):
        vfmtok.save_pretrained(tiny_models.tokenizer(), tmp_path / "tokenizer")
    vfmtok.save_pretrained(tiny_models.gpt(), tmp_path / "gpt", classes=["a", "b", "c"], tokenizer_hash="f" * 64)
    assert _facts(capsys, tmp_path / "tokenizer")["parts"] == _facts(capsys, root / "configs/tiny.yaml")["parts"]
    found = _facts(capsys, tmp_path / "gpt")
    assert found["kind"] == "gpt" and found["config"]["num_classes"] == 3 and not found["notes"]
    published = _facts(capsys, "yexiguafu/VFMTok")
    assert published["values_in_released_file"] == 73_352_367 and "GPT-B, GPT-L" in published["notes"][0]


def test_finite_scalar_quantization_has_no_codebook_to_count(capsys, root):
    settings = ("kind=fsq", "levels=[4,4,2,2]", "codebook_size=64", "code_dim=4")
    found = _facts(capsys, root / "configs/tiny.yaml", *(f"--set=quantizer.{setting}" for setting in settings))
    (quantizer,) = (part for part in found["parts"] if part["name"] == "quantizer")
    assert quantizer["parameters"] == 4 * (found["config"]["dim"] + 1) and found["bits_per_image"] == 16 * 6
