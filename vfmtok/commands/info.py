"""`vfmtok info CONFIG`: what a model is and what it needs, before anybody trains or downloads it.

CONFIG is a YAML file (a tokenizer's configuration, or a recipe of either training), the folder of a run, a checkpoint
or a saved model, the name of a generator, GPT-B to GPT-7B, or a published repository, for its tokenizer. Weights are
neither needed nor given memory. For example:
`vfmtok info configs/vit_transformer.yaml`, or `vfmtok info GPT-7B --set num_classes=100`.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from vfmtok.config import config_from_dict, config_to_dict, with_overrides
from vfmtok.errors import ConfigError
from vfmtok.evaluation.model_size import (
    BYTES,
    TRAINING_STATES,
    GPTSize,
    Part,
    TokenizerSize,
    gpt_size,
    tokenizer_size,
    training_memory,
)
from vfmtok.generators import AnyGeneratorConfig, generator_tree
from vfmtok.generators.gpt.config import GPT_SIZES, GPTConfig, gpt_config
from vfmtok.pretrained.loading import FACTS
from vfmtok.pretrained.published import PUBLISHED
from vfmtok.tokenizers import AnyTokenizerConfig, tokenizer_tree
from vfmtok.tokenizers.vfmtok.config import VFMTokConfig
from vfmtok.weights.checkpoint import newest_checkpoint

SEEN_IN_DATA = ("vocab_size", "num_tokens", "num_classes")  # what a generator's training takes from its tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    title, about = __doc__.split("\n\n")
    parser.description = (title.partition(": ")[2] + " " + about).replace("\n", " ")
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, a folder, GPT-B, ..., a repository")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the model")
    parser.add_argument("--json", action="store_true", help="the same for programs")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    config, notes = read_model_config(args.config, args.set)
    size = tokenizer_size(config) if isinstance(config, VFMTokConfig) else gpt_size(config)
    facts = tokenizer_facts(size) if isinstance(size, TokenizerSize) else gpt_facts(size)
    facts = {"model": args.config, **facts, "notes": notes}
    if args.json:
        print(json.dumps(facts, indent=1))
        return
    print("\n".join(_report(size, facts)))


# --------------------------------------------------------------------------------------
# Which model is meant
# --------------------------------------------------------------------------------------


def read_model_config(source: str, overrides: list[str]) -> tuple[VFMTokConfig | GPTConfig, list[str]]:
    """The configuration that ``source`` names (see the top of the file), changed, and what must be said of it.

    Raises:
        ConfigError: there is none, or it can't be used.
    """
    path = Path(source).expanduser()
    if source in GPT_SIZES or (source.upper().startswith("GPT-") and not path.exists()):
        return with_overrides(gpt_config(source), overrides), []
    if source in PUBLISHED and not path.exists():
        parts = PUBLISHED[source].parts
        others = ", ".join(part for part in parts if part != "tokenizer")
        return with_overrides(parts["tokenizer"].config, overrides), [
            f"this is its tokenizer; its generators: {others}"
        ]
    if path.is_dir():
        path = _config_in(path)
    elif not path.exists():
        raise ConfigError(f"no file, folder or generator is called {source} (generators: {', '.join(GPT_SIZES)})")
    elif path.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"{path} is no configuration: give a YAML file or the folder of a run")
    tree = {key: value for key, value in _read_yaml(path).items() if key not in FACTS}  # of a saved model
    kind, config = _model_in(tree, str(path))
    notes = []
    if kind == "gpt":
        given = {*generator_tree(tree), *(override.partition("=")[0] for override in overrides)}
        assumed = [f"{name} {getattr(config, name)}" for name in SEEN_IN_DATA if name not in given]
        if assumed:
            notes.append(f"assumed: {', '.join(assumed)}; training takes them from its tokens (say others with --set)")
    return with_overrides(config, overrides), notes


def _config_in(folder: Path) -> Path:
    """The configuration of a run, of a checkpoint or of a saved model. No weights are touched."""
    found = [folder / name for name in ("recipe.yaml", "config.yaml")]
    path = next((path for path in found if path.is_file()), None)
    if path is None and (folder / "checkpoints").is_dir():
        path = newest_checkpoint(folder) / "config.yaml"
    if path is None:
        raise ConfigError(f"{folder} holds no model: expected recipe.yaml or config.yaml in it")
    return path


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read configuration {path}: {str(error).splitlines()[0]}") from None
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(tree).__name__}")
    return tree or {}


def _model_in(tree: dict[str, Any], source: str) -> tuple[str, VFMTokConfig | GPTConfig]:
    """A recipe's model, or the tree as a model's own configuration; told apart by the keys at the top."""
    names = {field.name for field in dataclasses.fields(GPTConfig)}
    if tree.keys() & {"generator", "gpt"} or (tree and tree.keys() <= names):
        return "gpt", config_from_dict(generator_tree(tree), AnyGeneratorConfig, source)
    return "tokenizer", config_from_dict(tokenizer_tree(tree), AnyTokenizerConfig, source)


# --------------------------------------------------------------------------------------
# For programs
# --------------------------------------------------------------------------------------


def tokenizer_facts(size: TokenizerSize) -> dict[str, Any]:
    """What ``--json`` prints of a tokenizer: parameters, bytes, FLOPs of one image, sizes in px."""
    config = size.config
    flops = {part.name: part.flops for part in size.parts}
    encoding = sum(flops[name] for name in ("encoder", "sampler", "quantizer"))
    return {
        "kind": "tokenizer",
        "config": config_to_dict(config),
        **_shared_facts(size.parts),
        "parameters_without_encoder": sum(part.parameters for part in size.parts if part.name != "encoder"),
        "values_in_released_file": size.released_values,
        "frozen": [part.name for part in size.parts if part.parameters and not part.trained],
        "flops_encode": encoding,
        "flops_decode": sum(flops.values()) - encoding,
        "flops_training_forward": size.training_flops,
        "image_px": config.image_size,
        "encoder_px": config.encoder.image_size,
        "encoder_grids": [list(grid) for grid in size.grids],
        "tokens_per_image": config.code.num_tokens,
        "codebook_size": config.code.largest_codebook,
        "code_dim": config.quantizer.code_dim,
        "bits_per_image": size.bits,
    }


def gpt_facts(size: GPTSize) -> dict[str, Any]:
    """What ``--json`` prints of a generator: parameters, bytes, FLOPs of one image."""
    return {
        "kind": "gpt",
        "config": config_to_dict(size.config),
        **_shared_facts(size.parts),
        "frozen": [],
        "tokens_per_image": size.config.num_tokens,
        "codebook_size": size.config.vocab_size,
        "kv_cache_bytes_per_image": {name: size.cache_values() * count for name, count in BYTES.items()},
    }


def _shared_facts(parts: list[Part]) -> dict[str, Any]:
    parameters = sum(part.parameters for part in parts)
    return {
        "parameters": parameters,
        "trained_parameters": sum(part.trained for part in parts),
        "flops": sum(part.flops for part in parts),
        "weight_bytes": {name: parameters * count for name, count in BYTES.items()},
        "parts": [dataclasses.asdict(part) for part in parts],
        "training_bytes": {name: training_memory(parts, name) for name in BYTES},
    }


# --------------------------------------------------------------------------------------
# For people
# --------------------------------------------------------------------------------------


def _report(size: TokenizerSize | GPTSize, facts: dict[str, Any]) -> list[str]:
    about = _about_tokenizer(size, facts) if isinstance(size, TokenizerSize) else _about_gpt(size, facts)
    lines = [f"{facts['model']}: {'tokenizer' if facts['kind'] == 'tokenizer' else 'generator (GPT)'}", ""]
    lines += _table([[name, text] for name, text in about], numbers_from=2)
    lines += ["", "Parts, FLOPs for one image:"]
    rows = [["part", "parameters", "", "fp32 MiB", "bf16 MiB", "GFLOPs"]]
    for part in size.parts:
        state = "frozen" if part.parameters and not part.trained else "trained"
        rows.append(_row(part.name, part.parameters, state, part.flops))
    rows.append(_row("all", facts["parameters"], "", facts["flops"]))
    lines += ["  " + line for line in _table(rows)]
    counts = f"N = {facts['parameters']:,} parameters, T = {facts['trained_parameters']:,} trained ones"
    memory = [facts["training_bytes"][name] for name in BYTES]
    unit, name_of_unit = (2**30, "GiB") if sum(memory[0].values()) >= 2**30 else (2**20, "MiB")
    lines += ["", f"States of training in {name_of_unit}, without activations; {counts}:"]
    rows = [["state", "bytes", *BYTES]]
    for name, values, of in TRAINING_STATES:
        formula = f"{values if values > 1 else ''}{of} x bytes of a value".strip()
        rows.append([name, formula, *(f"{kind[name] / unit:.2f}" for kind in memory)])
    rows.append(["all", "", *(f"{sum(kind.values()) / unit:.2f}" for kind in memory)])
    lines += ["  " + line for line in _table(rows, numbers_from=2)]
    lines += ["  A value has 4 bytes in fp32 and 2 in bf16. --mixed-precision bf16 keeps every state in fp32."]
    return lines + [f"note: {note}" for note in facts["notes"]]


def _about_tokenizer(size: TokenizerSize, facts: dict[str, Any]) -> list[tuple[str, str]]:
    config, side = size.config, round(size.config.code.num_tokens**0.5)
    levels = zip(config.encoder.levels, size.grids, size.widths, strict=True)
    read = ", ".join(f"{level} ({h}x{w}, {width} channels)" for level, (h, w), width in levels)
    bits, raw = size.bits, 24 * config.image_size**2
    outside = f"{facts['parameters_without_encoder']:,}"
    if size.released_values is not None:
        outside += f"; a released file has {size.released_values:,} values ({size.released_values / 1e6:.2f} M), "
        outside += "a buffer of code usage included"
    return [
        ("image", f"{config.image_size} px in and out; the encoder sees {config.encoder.image_size} px"),
        ("encoder", f"{config.encoder.name}, weights {config.encoder.weights}"),
        ("levels read", read),
        (
            "tokens",
            f"{config.code.num_tokens} an image ({side}x{side}), read by {config.sampler.attention} attention",
        ),
        ("codebook", f"{config.code.largest_codebook:,} codes of {config.quantizer.code_dim} dimensions"),
        ("an image's ids", f"{bits:,.0f} bits = {bits / 8:,.0f} bytes, {raw / bits:,.0f} times less than its pixels"),
        ("frozen", ", ".join(facts["frozen"]) or "nothing"),
        ("without encoder", outside),
        ("encode, decode", f"{_giga(facts['flops_encode'])} and {_giga(facts['flops_decode'])} GFLOPs an image"),
        ("training", f"{_giga(size.training_flops)} GFLOPs an image forward, with the feature branch"),
    ]


def _about_gpt(size: GPTSize, facts: dict[str, Any]) -> list[tuple[str, str]]:
    config, cache = size.config, facts["kv_cache_bytes_per_image"]
    slots = 1 + config.num_tokens
    shape = f"{config.n_layer} layers, {config.n_head} heads, width {config.dim}, feed-forward {config.hidden}"
    mib = " and ".join(f"{count / 2**20:,.2f} MiB in {name}" for name, count in cache.items())
    return [
        ("parameters", f"{facts['parameters']:,} ({facts['parameters'] / 1e6:,.1f} M)"),
        ("shape", shape),
        ("tokens", f"{config.num_tokens} an image ({config.side}x{config.side}), {config.vocab_size:,} ids"),
        ("classes", f"{config.num_classes:,} and one for no class"),
        ("frozen", "nothing"),
        ("forward pass", f"{_giga(facts['flops'])} GFLOPs an image; a training step takes three times that"),
        ("sampling", "through the cache as many at most, twice with guidance"),
        ("KV cache", f"{mib} an image, twice that with guidance"),
        ("", f"(2 x {config.n_layer} layers x {slots} slots x {config.dim} values)"),
    ]


def _row(name: str, parameters: int, state: str, flops: int) -> list[str]:
    memory = [f"{parameters * count / 2**20:,.1f}" for count in BYTES.values()]
    return [name, f"{parameters:,}", state, *memory, _giga(flops)]


def _giga(flops: int) -> str:
    return f"{flops / 1e9:,.2f}"


def _table(rows: list[list[str]], numbers_from: int = 1) -> list[str]:
    """Lines with aligned columns: words to the left, numbers (from that column on) to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        words = [cell.ljust(width) for cell, width in zip(row[:numbers_from], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[numbers_from:], widths[numbers_from:], strict=True)]
        lines.append("  ".join(words + numbers).rstrip())
    return lines
