"""Configuration: strict in, equal out."""

import dataclasses
from typing import Literal

import pytest
import yaml

import vfmtok
from vfmtok.commands.flags import choices
from vfmtok.config import config_from_dict, config_to_dict, dump_config, with_overrides
from vfmtok.discriminators.build import DISCRIMINATORS
from vfmtok.families import Family
from vfmtok.generators import generator_tree
from vfmtok.losses.adversarial import DISCRIMINATOR_LOSSES
from vfmtok.quantizers import QUANTIZERS
from vfmtok.quantizers.cosine import CosineConfig
from vfmtok.quantizers.finite_scalar import FiniteScalarConfig
from vfmtok.tokenizers import TOKENIZERS, AnyTokenizerConfig, tokenizer_tree
from vfmtok.tokenizers.vqgan.config import VQGANConfig
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import AdversarialConfig, TokenizerRecipe


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def test_paper_config_is_the_default(root):
    """configs/vit_transformer.yaml spells out the defaults; the two must not drift apart."""
    config = vfmtok.load_config(root / "configs/vit_transformer.yaml")
    default = vfmtok.TokenizerConfig()
    encoder = dataclasses.replace(default.encoder, levels=(6, 12, 18, 24), position_resampling="size")
    assert config == dataclasses.replace(default, encoder=encoder)


def test_every_config_in_the_repository_loads(root):
    """A recipe is known by its sections; the rest are tokenizers. (Studies: tests/study.)"""
    for path in (root / "configs").rglob("*.yaml"):
        sections = yaml.safe_load(path.read_text()).keys()
        if "rows" in sections:
            continue
        kind = GeneratorRecipe if "generator" in sections else TokenizerRecipe if "run" in sections else None
        vfmtok.load_config(path, kind=kind)


def test_every_name_in_the_configuration_has_its_module():
    """The types name what can be chosen; the tables build it."""
    assert set(choices(AdversarialConfig, "discriminator")) == DISCRIMINATORS.keys() | {"none"}
    assert set(choices(AdversarialConfig, "loss")) == DISCRIMINATOR_LOSSES.keys()


def test_dump_reads_back_equal(root, tmp_path):
    config = vfmtok.load_config(root / "configs/tiny.yaml", ["quantizer.entropy_temperature=1e-2"])
    vfmtok.save_config(config, tmp_path / "dump.yaml")
    assert vfmtok.load_config(tmp_path / "dump.yaml") == config
    assert yaml.safe_load(dump_config(config))["encoder"]["levels"] == [2, 4, 6]


def test_overrides_apply_in_order(root):
    overrides = [
        "sampler.num_tokens=64",
        "sampler.num_tokens=36",
        "encoder.levels=[24]",
        "quantizer.commit_weight=1e-1",
    ]
    config = vfmtok.load_config(root / "configs/vit_transformer.yaml", overrides)
    assert config.sampler.num_tokens == 36
    assert config.encoder.levels == (24,)
    assert config.quantizer.commit_weight == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder: {nmae: x}", "unknown key 'encoder.nmae' (closest match: 'encoder.name')"),
        ("smapler: {}", "unknown key 'smapler' (closest match: 'sampler')"),
        ("sampler: {num_tokens: 250}", "sampler.num_tokens must be a square number, got 250"),
        ("sampler: {num_tokens: true}", "sampler.num_tokens must be int, got True"),
        ("sampler: {num_tokens: 16.0}", "sampler.num_tokens must be int, got 16.0"),
        ("sampler: {attention: deformible}", "closest match: 'deformable'"),
        ("sampler: 3", "sampler must be a section of keys and values, got 3"),
        ("quantizer: {commit_weight: much}", "quantizer.commit_weight must be a number, got 'much'"),
        ("encoder: {levels: [6, 6]}", "encoder.levels must increase from 1"),
        ("encoder: {levels: 6}", "encoder.levels must be a list, got 6"),
        ("image_size: 333", "image_size must be a multiple of the pixel decoder's stride 16, got 333"),
        ("decoder: {heads: 7}", "decoder.heads must divide dim 512, got 7"),
        ("image_size: 1\nimage_size: 2", "key 'image_size' appears twice"),
        ("dim: 0", "dim must be positive, got 0"),
        ("sampler: {points: 0}", "sampler.points must be positive, got 0"),
        ("quantizer: {entropy_temperature: 0}", "quantizer.entropy_temperature must be positive, got 0.0"),
        ("quantizer: {commit_weight: .nan}", "quantizer.commit_weight must be a number from 0, got nan"),
        ("decoder: {registers: -1}", "decoder.registers must be 0 or more, got -1"),
        ("decoder: {position_grid: 0}", "decoder.position_grid must be positive, got 0"),
        ("decoder: {attention_dropout: 1.5}", "decoder.attention_dropout must be in [0,1), got 1.5"),
        ("pixel_decoder: {multipliers: []}", "pixel_decoder.multipliers must be one or more positive numbers"),
        ("pixel_decoder: {channels: 40}", "pixel_decoder.channels times every multiplier must be a multiple of 32"),
        ("encoder: {mean: [0.5]}", "encoder.mean must have 3 numbers, got (0.5,)"),
        ("encoder: {std: [0, 0, 0]}", "encoder.std must have 3 positive numbers"),
        ("encoder: {weights_sha256: abc}", "encoder.weights_sha256 needs encoder.weights to name a file"),
        ("image_size: [", "not valid YAML"),
        ("kind: [a]", "kind must be one of vfmtok, hita, vfm_vae, vfmae, vqgan, got ['a']"),
        ("quantizer: {kind: {a: b}}", "quantizer.kind must be one of cosine, fsq, got {'a': 'b'}"),
        ("num_tokens: 16", "unknown key 'num_tokens' (closest match: 'sampler.num_tokens')"),
        ("- a", "expected keys and values at the top"),
    ],
)
def test_mistakes_are_named_in_one_line(write, text, message):
    with pytest.raises(vfmtok.ConfigError) as error:
        vfmtok.load_config(write(text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.num_tokens", "--set takes section.field=value"),
        ("sampler..depth=1", "--set takes section.field=value"),
        ("sampler.dpeth=1", "unknown key 'sampler.dpeth' (closest match: 'sampler.depth')"),
        ("image_size.x=1", "image_size' is a value, not a section"),
        ("encoder.levels.0.x=1", "encoder.levels.0' is a value, not a section"),
        ("encoder.levels.9.x=1", "encoder.levels' has 2 rows, counted from 0, and no '9'"),
        ("encoder.levels.0=1", "encoder.levels' is a list: name a field of one of its rows, or all"),
    ],
)
def test_wrong_overrides(write, override, message):
    with pytest.raises(vfmtok.ConfigError) as error:
        vfmtok.load_config(write("{image_size: 336, encoder: {levels: [1, 2]}}"), [override])
    assert message in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(vfmtok.ConfigError, match=r"cannot read configuration .*nothing.yaml"):
        vfmtok.load_config(tmp_path / "nothing.yaml")


def test_a_section_of_another_kind_begins_with_its_defaults(write):
    """Of a file and of a whole configuration; what version 0.1 wrote beside ``kind: fsq`` is read as it was meant."""
    levels = ["tokenizer.quantizer.kind=fsq", "tokenizer.quantizer.levels=[4,4,4]"]
    config = vfmtok.load_config(write("quantizer: {kind: cosine, commit_weight: 0.5}"), levels)
    assert (config.quantizer.codebook_size, config.quantizer.code_dim) == (64, 3)
    unnamed = write("quantizer: {codebook_size: 16, code_dim: 5}")  # of the default kind
    assert vfmtok.load_config(unnamed, levels) == config
    same = vfmtok.load_config(write("quantizer: {codebook_size: 16}"), ["quantizer.kind=cosine"])
    assert same.quantizer == CosineConfig(codebook_size=16)
    old = {"codebook_size": 64, "code_dim": 3, "commit_weight": 0.25, "entropy_weight": 0.0, "levels": [4, 4, 4]}
    text = yaml.safe_dump({"quantizer": {"kind": "fsq", "entropy_temperature": 0.01, **old}})
    assert vfmtok.load_config(write(text)) == config
    back = with_overrides(config, ["quantizer.codebook_size=32", "quantizer.kind=cosine"])
    assert back.quantizer == CosineConfig(codebook_size=32)
    with pytest.raises(vfmtok.ConfigError, match=r"quantizer\.kind must be one of.*closest match: 'cosine'"):
        vfmtok.load_config(write("quantizer: {kind: cosin}"))


@pytest.mark.parametrize(
    ("kind", "setting", "meant"),
    [
        (TokenizerRecipe, "encoder.name=a", "tokenizer.encoder"),
        (TokenizerRecipe, "validation_images=3", "run.validation_images"),
        (TokenizerRecipe, "tokenizer.lr=1", "optimizer.lr"),
        (GeneratorRecipe, "anneal_start=3", "generator.anneal_start"),
    ],
)
def test_a_key_of_another_section_is_found_there(kind, setting, meant):
    with pytest.raises(vfmtok.ConfigError, match=rf"closest match: '{meant}'\)"):
        with_overrides(kind(), [setting])


def test_a_whole_section_comes_before_its_fields():
    """Whatever their order: the section, its kind, its fields."""
    section = {"image_size": 64, "quantizer": {"kind": "cosine", "codebook_size": 32}}
    kinds = ["tokenizer.quantizer.kind=fsq", "tokenizer.quantizer.levels=[4,4]"]
    recipe = with_overrides(TokenizerRecipe(), kinds, {"tokenizer": {**section, "encoder": {"weights": "random"}}})
    assert recipe.tokenizer.quantizer == FiniteScalarConfig(levels=(4, 4)) and recipe.tokenizer.image_size == 64
    found = with_overrides(TokenizerRecipe(), ["optimizer.lr=2", "optimizer={weight_decay: 0.5}"]).optimizer
    assert (found.lr, found.weight_decay) == (2, 0.5)


@pytest.mark.parametrize("kinds", [["kind=vfmtok"], ["kind=vqgan", "kind=vfmtok"], ["kind=vfmtok", "kind=vfmtok"]])
def test_a_section_of_the_same_kind_keeps_what_the_file_says(write, kinds):
    """At every depth, however often the kind is set; the last time counts."""
    file = write("dim: 64\nquantizer: {commit_weight: 0.5, code_dim: 5}\nsampler: {depth: 2, points: 3}")
    settings = [*kinds, "quantizer.kind=cosine", "quantizer.code_dim=7", "sampler.points=2"]
    plain = vfmtok.load_config(file, settings[-2:])
    assert vfmtok.load_config(file, settings) == plain and (plain.quantizer.commit_weight, plain.sampler.depth) == (
        0.5,
        2,
    )


def test_a_model_of_another_kind_begins_with_its_defaults(root):
    file = root / "configs/tiny.yaml"
    assert vfmtok.load_config(file, ["tokenizer.kind=vqgan"]) == VQGANConfig()
    assert vfmtok.load_config(file, ["kind=vqgan", "image_size=64"]) == VQGANConfig(image_size=64)
    assert generator_tree({"n_layer": 3}, ["kind=rar", "dim=64"]) == {"kind": "rar", "dim": 64}
    assert generator_tree({"gpt": {"n_layer": 3}}, ["gpt.kind=gpt"]) == {"kind": "gpt", "n_layer": 3}
    saved = tokenizer_tree({"kind": "vqgan", "quantizer": {"codebook_size": 8}}, ["quantizer.kind=cosine"])
    assert config_from_dict(saved, AnyTokenizerConfig, saved=True).quantizer.codebook_size == 8


def test_a_row_added_later_is_a_kind(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Own:
        kind: Literal["own"] = "own"
        width: int = 3

    monkeypatch.setitem(TOKENIZERS, "own", Family(Own, "nowhere:Own"))
    monkeypatch.setitem(QUANTIZERS, Own, None)
    assert config_from_dict({"kind": "own", "width": 4}, AnyTokenizerConfig) == Own(width=4)
    recipe = config_from_dict(
        {"tokenizer": {"quantizer": {"kind": "own"}, "encoder": {"weights": "random"}}}, TokenizerRecipe
    )
    assert recipe.tokenizer.quantizer == Own()
    assert config_from_dict({"tokenizer": {"kind": "own"}}, TokenizerRecipe).tokenizer == Own()


def test_settings_of_pictures_in_either_place():
    old = config_from_dict(
        {"pictures": {"every": 3, "cfg_scale": 4.0, "top_k": 0, "temperature": 0.5}}, GeneratorRecipe
    )
    assert old.pictures.sampling == {"cfg_scale": 4.0, "temperature": 0.5}
    assert with_overrides(old, ["pictures.top_k=5"]).pictures.sampling == {**old.pictures.sampling, "top_k": 5}
    new = with_overrides(old, ["pictures.sampling.steps=9"])
    assert new.pictures.sampling["steps"] == 9 and config_from_dict(config_to_dict(new), GeneratorRecipe) == new
    as_it_was = {"every": 5000, "classes": 8, "cfg_scale": 2.0, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "seed": 0}
    assert config_from_dict({"pictures": as_it_was}, GeneratorRecipe, saved=True) == GeneratorRecipe()


def test_a_recipe_of_version_0_1_reads_the_same():
    old = config_from_dict({"gpt": {"n_layer": 3}, "run": {"seed": 4}}, GeneratorRecipe)
    assert old == config_from_dict({"generator": {"kind": "gpt", "n_layer": 3}, "run": {"seed": 4}}, GeneratorRecipe)
