"""`vfmtok info CONFIG`: what a model is and what it needs, before anybody trains or downloads it."""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from vfmtok.code import Ids
from vfmtok.commands import flags, info_on_gpus
from vfmtok.commands.columns import aligned
from vfmtok.config import closest_match, config_from_dict, config_to_dict, read_tree
from vfmtok.errors import ConfigError
from vfmtok.evaluation.model_size import (
    BYTES,
    TRAINING_STATES,
    GeneratorSize,
    ModelSize,
    TokenizerSize,
    generator_size,
    tokenizer_size,
    training_memory,
)
from vfmtok.generators import GENERATORS, AnyGeneratorConfig, generator_tree
from vfmtok.pretrained.loading import FACTS
from vfmtok.pretrained.published import PUBLISHED, part_name, split_name
from vfmtok.tokenizers import AnyTokenizerConfig, tokenizer_tree
from vfmtok.weights.checkpoint import newest_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Say what a model is and what it needs, before anybody trains or downloads it. CONFIG is a YAML file (a "
        "recipe of either training, or a model's section alone), the folder of a run, a checkpoint or a saved model, "
        "the name of a generator's size, or a published repository, for its tokenizer. Weights are neither needed nor "
        "given memory. For example: `vfmtok info configs/vit_transformer.yaml`, or `vfmtok info GPT-7B --set "
        "num_classes=100`. With --on also what a training takes: its step, memory, days and cost, counted; --set then "
        "reaches the whole recipe."
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, a folder, GPT-B, ..., a repository")
    flags.add_set(parser, "tokenizer", "generator")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    info_on_gpus.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    model = read_model(args.config, args.set, with_recipe=args.on is not None)
    found = []
    if args.on is not None:
        found = info_on_gpus.forecasts(model.section, model.config, model.recipe, model.settings, args)
    size = tokenizer_size(model.config) if model.section == "tokenizer" else generator_size(model.config)
    specific = tokenizer_facts(size) if isinstance(size, TokenizerSize) else generator_facts(size)
    facts = {"model": args.config, **specific, "notes": model.notes}
    if found:
        facts["on"] = [info_on_gpus.facts(each) for each in found]
    if args.json:
        print(json.dumps(facts, indent=1))
        return
    print("\n".join([*_report(size, facts), *(["", *info_on_gpus.report(found)] if found else [])]))


# --------------------------------------------------------------------------------------
# Which model is meant
# --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Model:
    """A tokenizer or a generator, by its configuration.

    Attributes:
        section: "tokenizer" or "generator".
        config: the family's dataclass.
        notes: what must be said of it.
        recipe: the other sections of its recipe, as they stand in the file; none of a model alone.
        settings: those of ``settings`` that are about these.
    """

    section: str
    config: Any
    notes: list[str]
    recipe: dict[str, Any]
    settings: list[str]


def read_model(source: str, settings: list[str], with_recipe: bool = False) -> Model:
    """What ``source`` names (see ``add_arguments``), changed by ``settings``.

    Args:
        with_recipe: settings may be about other sections of its recipe.

    Raises:
        ConfigError: there is none, or it can't be used.
    """
    path = Path(source).expanduser()
    of_tree = functools.partial(_model, settings=settings, with_recipe=with_recipe)
    sizes = {name: {"kind": kind, **fields} for kind, of in GENERATORS.items() for name, fields in of.sizes.items()}
    if path.is_dir():
        return of_tree(read_tree(_config_in(path)), source=str(path), saved=True)
    if path.exists():
        if path.suffix.lower() not in (".yaml", ".yml"):
            raise ConfigError(f"{path} is no configuration: give a YAML file or the folder of a run")
        return of_tree(read_tree(path), source=str(path))
    if source in sizes:
        found = of_tree({"generator": sizes[source]}, source=source)
        return dataclasses.replace(found, notes=[])  # of a name nobody expects the data's numbers
    if (named := split_name(source)) is not None:
        repository, part = named
        parts, part = PUBLISHED[repository].parts, part_name(repository, part, "tokenizer")
        found = of_tree({parts[part].section: config_to_dict(parts[part].config)}, source=source)
        others = ", ".join(other for other in parts if other != part)
        return dataclasses.replace(found, notes=[f"this is the part {part} of {repository}; the others: {others}"])
    hint = closest_match(source, [*sizes, *PUBLISHED])
    raise ConfigError(f"no file, folder or generator is called {source}{hint}; generators: {', '.join(sizes)}")


def _model(
    tree: dict[str, Any], settings: list[str], source: str, with_recipe: bool = False, saved: bool = False
) -> Model:
    """The model of a recipe, or of a file that is one model's section alone, whose ``kind`` says of which table."""
    tree = {key: value for key, value in tree.items() if key not in FACTS}  # of a saved model
    of_generator = bool(tree.keys() & {"generator", "gpt"}) or tree.get("kind") in GENERATORS
    section, read, kinds = (
        ("generator", generator_tree, AnyGeneratorConfig)
        if of_generator
        else ("tokenizer", tokenizer_tree, AnyTokenizerConfig)
    )
    settings = [flags.modern(setting) for setting in settings]
    others = [setting for setting in settings if with_recipe and info_on_gpus.changes_recipe(section, setting)]
    is_recipe = bool(tree.keys() & {section, "gpt"})
    rest = {key: value for key, value in tree.items() if is_recipe and key not in (section, "gpt")}
    own = read(tree, [setting for setting in settings if setting not in others], source)
    config = config_from_dict(own, kinds, source, saved)
    if section == "tokenizer":
        return Model(section, config, [], rest, others)
    fields = [*type(config).fields_of_code(config.code), "num_classes"]  # what training takes from its data
    assumed = [f"{name} {getattr(config, name)}" for name in fields if name not in own and getattr(config, name)]
    text = f"assumed: {', '.join(assumed)}; training takes them from its data (say others with --set)"
    return Model(section, config, [text] if assumed else [], rest, others)


def _config_in(folder: Path) -> Path:
    """The configuration of a run, of a checkpoint or of a saved model. No weights are touched."""
    found = [folder / name for name in ("recipe.yaml", "config.yaml")]
    path = next((path for path in found if path.is_file()), None)
    if path is None and (folder / "checkpoints").is_dir():
        path = newest_checkpoint(folder) / "config.yaml"
    if path is None:
        raise ConfigError(f"{folder} holds no model: expected recipe.yaml or config.yaml in it")
    return path


# --------------------------------------------------------------------------------------
# For programs
# --------------------------------------------------------------------------------------


def tokenizer_facts(size: TokenizerSize) -> dict[str, Any]:
    """What ``--json`` prints of a tokenizer: parameters, bytes, FLOPs of one image, sizes in px."""
    config = size.config
    shared = _shared_facts(size)
    encoder, quantizer = getattr(config, "encoder", None), getattr(config, "quantizer", None)
    return {
        "kind": "tokenizer",
        **shared,
        "parameters_without_encoder": sum(part.parameters for part in size.parts if part.name != "encoder"),
        "values_in_released_file": size.released_values,
        "frozen": [part.name for part in size.parts if part.parameters and not part.trained],
        "flops_encode": size.encode_flops,
        "flops_decode": shared["flops"] - size.encode_flops,
        "flops_training_forward": size.training_flops,
        "image_px": config.image_size,
        "encoder_px": getattr(encoder, "image_size", None),
        "encoder_grids": [list(grid) for grid in size.grids],
        "code_dim": getattr(quantizer, "code_dim", None),
        "bits_per_image": size.bits,
    }


def generator_facts(size: GeneratorSize) -> dict[str, Any]:
    """What ``--json`` prints of a generator: parameters, bytes, FLOPs of one image."""
    values = size.cache_values()
    cache = None if values is None else {name: values * count for name, count in BYTES.items()}
    return {"kind": size.config.kind, **_shared_facts(size), "frozen": [], "kv_cache_bytes_per_image": cache}


def _shared_facts(size: ModelSize) -> dict[str, Any]:
    parts, code = size.parts, size.code
    parameters = sum(part.parameters for part in parts)
    return {
        "family": size.config.kind,
        "config": config_to_dict(size.config),
        "code": str(code),
        "tokens_per_image": code.num_tokens if isinstance(code, Ids) else None,
        "codebook_size": code.largest_codebook if isinstance(code, Ids) else None,
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


def _report(size: ModelSize, facts: dict[str, Any]) -> list[str]:
    about = _about_tokenizer(size, facts) if isinstance(size, TokenizerSize) else _about_generator(size, facts)
    section = "tokenizer" if isinstance(size, TokenizerSize) else "generator"
    lines = [f"{facts['model']}: {section}, kind {facts['family']}", ""]
    lines += aligned([[name, text] for name, text in about], numbers_from=2)
    lines += ["", "Parts, FLOPs for one image:"]
    rows = [["part", "parameters", "", "fp32 MiB", "bf16 MiB", "GFLOPs"]]
    for part in size.parts:
        state = "frozen" if part.parameters and not part.trained else "trained"
        rows.append(_row(part.name, part.parameters, state, part.flops))
    rows.append(_row("all", facts["parameters"], "", facts["flops"]))
    lines += ["  " + line for line in aligned(rows)]
    counts = f"N = {facts['parameters']:,} parameters, T = {facts['trained_parameters']:,} trained ones"
    memory = [facts["training_bytes"][name] for name in BYTES]
    unit, name_of_unit = (2**30, "GiB") if sum(memory[0].values()) >= 2**30 else (2**20, "MiB")
    lines += ["", f"States of training in {name_of_unit}, without activations; {counts}:"]
    rows = [["state", "bytes", *BYTES]]
    for name, values, of in TRAINING_STATES:
        formula = f"{values if values > 1 else ''}{of} x bytes of a value".strip()
        rows.append([name, formula, *(f"{kind[name] / unit:.2f}" for kind in memory)])
    rows.append(["all", "", *(f"{sum(kind.values()) / unit:.2f}" for kind in memory)])
    lines += ["  " + line for line in aligned(rows, numbers_from=2)]
    lines += ["  A value has 4 bytes in fp32 and 2 in bf16. --mixed-precision bf16 keeps every state in fp32."]
    return lines + [f"note: {note}" for note in facts["notes"]]


def _about_tokenizer(size: TokenizerSize, facts: dict[str, Any]) -> list[tuple[str, str]]:
    config, bits = size.config, size.bits
    px = f"{config.image_size} px in and out"
    rows = [("image", px if facts["encoder_px"] is None else f"{px}; the encoder sees {facts['encoder_px']} px")]
    if size.grids:
        encoder = config.encoder
        levels = zip(encoder.levels, size.grids, size.widths, strict=True)
        read = ", ".join(f"{level} ({h}x{w}, {width} channels)" for level, (h, w), width in levels)
        rows += [("encoder", f"{encoder.name}, weights {encoder.weights}"), ("levels read", read)]
    dims = "" if facts["code_dim"] is None else f", of {facts['code_dim']} dimensions"
    rows.append(("code", f"{size.code} an image{dims}"))
    if bits is not None:
        share = f"{24 * config.image_size**2 / bits:,.0f} times less than its pixels"
        rows.append(("an image's ids", f"{bits:,.0f} bits = {bits / 8:,.0f} bytes, {share}"))
    outside = f"{facts['parameters_without_encoder']:,}"
    if size.released_values is not None:
        outside += f"; a released file has {size.released_values:,} values ({size.released_values / 1e6:.2f} M)"
    return [
        *rows,
        ("frozen", ", ".join(facts["frozen"]) or "nothing"),
        ("without encoder", outside),
        ("encode, decode", f"{_giga(facts['flops_encode'])} and {_giga(facts['flops_decode'])} GFLOPs an image"),
        ("training", f"{_giga(size.training_flops)} GFLOPs an image forward, with what runs only there"),
    ]


def _about_generator(size: GeneratorSize, facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("parameters", f"{facts['parameters']:,} ({facts['parameters'] / 1e6:,.1f} M)"),
        ("code", f"{size.code} an image"),
        ("classes", f"{size.config.num_classes:,} and one for no class"),
        ("frozen", "nothing"),
        ("forward pass", f"{_giga(facts['flops'])} GFLOPs an image; a training step takes three times that"),
    ]
    cache = facts["kv_cache_bytes_per_image"]
    if cache is not None:
        mib = " and ".join(f"{count / 2**20:,.2f} MiB in {name}" for name, count in cache.items())
        rows += [
            ("sampling", "through the cache as many at most, twice with guidance"),
            ("KV cache", f"{mib} an image, twice that with guidance"),
        ]
    numbers = {name: value for name, value in facts["config"].items() if isinstance(value, int) and value}
    return [*rows, ("settings", ", ".join(f"{name} {value}" for name, value in list(numbers.items())[:6]))]


def _row(name: str, parameters: int, state: str, flops: int) -> list[str]:
    memory = [f"{parameters * count / 2**20:,.1f}" for count in BYTES.values()]
    return [name, f"{parameters:,}", state, *memory, _giga(flops)]


def _giga(flops: int) -> str:
    return f"{flops / 1e9:,.2f}"
