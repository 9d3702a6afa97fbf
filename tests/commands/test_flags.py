"""Flags that several commands have: declared once, one meaning, one prefix of --set everywhere."""

import argparse
import ast
import importlib
from pathlib import Path

import pytest
import torch

import vfmtok
from vfmtok.cli import COMMANDS
from vfmtok.commands import evaluation_flags, flags, generator_flags, models, sampling_flags, tokenizer_flags
from vfmtok.commands.parser import OneLineParser
from vfmtok.errors import ConfigError

SCRIPTS = {
    "vq_train.py": tokenizer_flags.tokenizer_parser,
    "train_c2i.py": generator_flags.generator_parser,
    "vqgan_test.py": evaluation_flags.reconstruction_parser,
    "test_net.py": evaluation_flags.generation_parser,
}


def parsers() -> dict[str, argparse.ArgumentParser]:
    found = {name: build() for name, build in SCRIPTS.items()}
    for name, module in COMMANDS.items():
        found[name] = OneLineParser(name)
        importlib.import_module(module).add_arguments(found[name])
    return found


def test_a_flag_of_several_commands_is_declared_once():
    """Its name stands in one ``add_argument`` or table of the room; its help is then the same everywhere."""
    shared = ("--vq-ckpt", "--transformer-config-file", "--gpt-model", "--set", "--inception", "--recipe")
    places = dict.fromkeys(shared, 0)
    for path in Path(vfmtok.commands.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tables = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
        calls = [
            node for node in ast.walk(tree) if isinstance(node, ast.Call) and "add_argument" in ast.dump(node.func)
        ]
        for node in (inner for outer in (*tables, *calls) for inner in ast.walk(outer)):
            if isinstance(node, ast.Constant) and node.value in places:
                places[node.value] += 1
    aliased = {"--vq-ckpt", "--transformer-config-file"}  # once more, in the table of aliases
    assert places == {flag: 1 + (flag in aliased) for flag in shared}


def test_every_published_name_has_the_uniform_one_beside_it():
    for name, parser in parsers().items():
        known = parser._option_string_actions
        for flag, others in flags.ALIASES.items():
            starts_from = (name, flag) in (("vq_train.py", "--vq-ckpt"), ("train_c2i.py", "--gpt-ckpt"))
            if flag in known and not starts_from:
                assert all(known.get(other) is known[flag] for other in others), (name, flag)


@pytest.mark.parametrize(
    "name", ["codes", "reconstruct", "vqgan_test.py", "test_net.py", "sample", "agreement", "info"]
)
def test_settings_have_the_sections_of_a_recipe(name):
    """With a section; without one as in version 0.1; and by the generator's old name."""
    parser = parsers()[name]
    words = []
    for action in parser._actions:
        if action.required:
            words += [*action.option_strings[:1], "x"]
    words = [*words, "--set", "tokenizer.dim=64", "--set", "sampler.depth=3"]
    both = {"tokenizer": ["dim=64", "sampler.depth=3"]}
    if parser.get_default("sections") == ("tokenizer", "generator"):
        words += ["--set", "generator.n_layer=2", "--set", "gpt.n_head=4"]
        both["generator"] = ["n_layer=2", "n_head=4"]
    assert flags.settings_of(parser.parse_args(words)) == both


def test_the_old_flag_of_the_generator_s_fields():
    command = ["--vq-ckpt", "a", "--gpt-ckpt", "b", "--num-classes", "3"]
    parser = evaluation_flags.generation_parser()
    old = parser.parse_args([*command, "--gpt-set", "n_layer=3", "--set", "dim=64"])
    new = parser.parse_args([*command, "--set", "generator.n_layer=3", "--set", "tokenizer.dim=64"])
    assert models.generator_fields(old) == models.generator_fields(new) == {"n_layer": 3, "num_classes": 3}
    assert flags.settings_of(old) == flags.settings_of(new)
    assert parser.parse_args(command).set == []  # nothing is left from before


def test_what_encodes_is_refused_a_random_encoder(tmp_path, root):
    """A file of weights and a configuration that leaves the encoder random: codes of it would mean nothing."""
    import torch

    import vfmtok
    from vfmtok.tokenizers import load_config

    torch.save(vfmtok.to_released(vfmtok.VFMTok(load_config(root / "configs/tiny.yaml"))), tmp_path / "tokenizer.pt")
    parser = OneLineParser("codes")
    flags.add_tokenizer(parser)
    flags.add_set(parser, "tokenizer")
    words = ["--vq-ckpt", str(tmp_path / "tokenizer.pt"), "--transformer-config-file", str(root / "configs/tiny.yaml")]
    forgotten = parser.parse_args([*words, "--set", "tokenizer.encoder.weights=none"])
    with pytest.raises(ConfigError, match="test_vit"):
        models.open_tokenizer(forgotten, torch.device("cpu"))
    for args, encodes in ((forgotten, False), (parser.parse_args(words), True)):
        assert models.open_tokenizer(args, torch.device("cpu"), encodes=encodes).code.num_tokens == 16
    with pytest.raises(ConfigError, match="test_vit"):
        (tmp_path / "none.yaml").write_text((root / "configs/tiny.yaml").read_text().replace("random", "none"))
        images = ["--anno-file", "x", "--vq-ckpt", words[1], "--transformer-config-file", str(tmp_path / "none.yaml")]
        generator_flags.generator_recipe(generator_flags.generator_parser().parse_args(images))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--guidance-scale", "6.5", "--guidance-scale-pow", "1.5"], (6.5, 1.5)),
        (["--cfg-scale", "6.5", "--cfg-power", "1.5"], (6.5, 1.5)),
        (["--guidance-scale", "0"], (1.0, 2.75)),  # RAR's scripts: without guidance
        ([], (16.0, 2.75)),
    ],
)
def test_guidance_under_rar_s_names(given, expected):
    parser = argparse.ArgumentParser()
    sampling_flags.add_sampling(parser)
    with torch.device("meta"):
        rar = vfmtok.RAR(vfmtok.rar_config("RAR-B", n_layer=1, dim=32, n_head=2, num_tokens=16))
    found = sampling_flags.sampling_of(parser.parse_args(given), rar)
    assert (found.cfg_scale, found.cfg_power) == expected and found.cfg_schedule == "power-cosine"
