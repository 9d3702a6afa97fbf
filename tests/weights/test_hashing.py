"""What makes a model the one that a cache or a run was made by: the same for ever, whatever defaults become."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import pytest

from vfmtok import config as configuration
from vfmtok.config import config_from_dict, config_to_dict
from vfmtok.decoders.vqgan import PixelDecoderConfig
from vfmtok.generators import GENERATORS, AnyGeneratorConfig
from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.quantizers.cosine import CosineConfig
from vfmtok.tokenizers import TOKENIZERS, AnyTokenizerConfig
from vfmtok.tokenizers.vfmtok.config import VFMTokConfig
from vfmtok.weights.hashing import identity, tokenizer_hash

HERE = Path(__file__).parent


def test_tensors_and_settings_make_the_hash(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    first = tokenizer_hash(tokenizer)
    assert first == tokenizer_hash(tiny_tokenizer())
    assert first != tokenizer_hash(tiny_tokenizer("decoder.register_position=front"))  # the same tensors
    tokenizer.quantizer.codebook.data[3, 2] += 1e-6
    assert first != tokenizer_hash(tokenizer)


@pytest.mark.parametrize(("families", "kind"), [("tokenizers", AnyTokenizerConfig), ("generators", AnyGeneratorConfig)])
def test_identities_are_those_that_version_0_1_computed(families, kind):
    """The file was written by its code: resolved configurations, and what it hashed of them."""
    cases = json.loads((HERE / "identities_v0_1.json").read_text())[families]
    assert len(cases) >= 5
    for case in cases:
        config = config_from_dict(case["config"], kind, saved=True)
        assert json.dumps(identity(config), sort_keys=True) == json.dumps(case["identity"], sort_keys=True)


@pytest.mark.parametrize("weights", ["none", "random", "hub", "/a/file.pth"])
def test_where_an_encoder_was_read_from_is_no_part_of_it(weights):
    config = VFMTokConfig(encoder=dataclasses.replace(VFMTokConfig().encoder, weights=weights))
    assert identity(config) == identity(VFMTokConfig())


@dataclasses.dataclass(frozen=True)
class LaterQuantizer(CosineConfig):
    new_field: int = 3  # the default, which is not what it was pinned at
    PINNED: ClassVar[dict] = {**CosineConfig.PINNED, "new_field": 0}


@dataclasses.dataclass(frozen=True)
class Later(VFMTokConfig):
    dim: int = 768  # another default
    quantizer: LaterQuantizer = dataclasses.field(default_factory=LaterQuantizer)
    extra: PixelDecoderConfig | None = None
    PINNED: ClassVar[dict] = {**VFMTokConfig.PINNED, "extra": None}


def test_neither_another_default_nor_a_new_field_changes_what_was_saved(tiny_config):
    saved = config_to_dict(tiny_config())
    read = config_from_dict(saved, Later, saved=True)
    assert read.quantizer.new_field == 0 and read.extra is None
    assert identity(read) == identity(tiny_config())
    del saved["dim"]
    assert config_from_dict(saved, Later, saved=True).dim == 512
    assert config_from_dict(saved, Later).dim == 768
    new = dataclasses.replace(read, quantizer=LaterQuantizer(**vars(tiny_config().quantizer)))
    assert identity(new)["quantizer"]["new_field"] == 3


def test_a_section_of_version_0_1_that_is_called_otherwise_now_keeps_its_values():
    @dataclasses.dataclass(frozen=True)
    class Recipe:
        generator: GPTConfig = dataclasses.field(default_factory=GPTConfig)

        @classmethod
        def upgraded(cls, tree):
            return {"generator": tree["gpt"]} if "gpt" in tree else tree

    assert config_from_dict({"gpt": {"dim": 48}}, Recipe, saved=True).generator.dim == 48


def test_a_family_that_pins_nothing_is_hashed_in_full():
    @dataclasses.dataclass(frozen=True)
    class New:
        kind: str = "new"
        width: int = 8
        quantizer: CosineConfig = dataclasses.field(default_factory=CosineConfig)

    assert identity(New()) == {"schema": 1, "kind": "new", "width": 8}
    assert identity(New(quantizer=CosineConfig(code_dim=4)))["quantizer"] == {"code_dim": 4}


# --------------------------------------------------------------------------------------
# Decisions
# --------------------------------------------------------------------------------------


def test_something_was_decided_about_every_default_and_every_field():
    """A change of defaults or fields changes this table: what to do then stands in the assertion."""
    decided, today = json.loads((HERE / "identities.json").read_text()), decisions()
    for section, fields in decided.items():
        for name, (_, said) in fields.items():
            assert today[section][name][1] == said, (
                f"{section}.{name} was hashed otherwise ({said}) when models were saved: their hashes would change"
            )
        for name in today[section].keys() - fields.keys():
            assert today[section][name][1] != "hashed", (
                f"{section}.{name} is new: pin it (PINNED) at the value at which models are what they were before it, "
                "or the hashes of all models of this kind change"
            )
    assert decided == today, (
        "if every difference is meant, and files that leave out a changed default are mended: run "
        "python tests/weights/test_hashing.py, which writes identities.json"
    )


def decisions() -> dict[str, dict[str, list]]:
    """section -> field -> [its default, how it is hashed: "hashed", "unhashed", or the value it is pinned at]."""
    sections, table = set(), {}
    for family in [*TOKENIZERS.values(), *GENERATORS.values()]:
        sections |= sections_of(family.config)
    for section in sorted(sections, key=lambda section: f"{section.__module__}.{section.__name__}"):
        unhashed, pinned = getattr(section, "UNHASHED", ()), getattr(section, "PINNED", {})
        rows = {}
        for item in dataclasses.fields(section):
            if configuration.sections_of(configuration.hints_of(section)[item.name]):
                continue
            said = ["pinned", pinned[item.name]] if item.name in pinned else "hashed"
            default = "required" if item.default is dataclasses.MISSING else item.default
            rows[item.name] = [default, "unhashed" if item.name in unhashed else said]
        rows |= {name: ["a property", ["pinned", pinned[name]]] for name in pinned if name not in rows}
        table[f"{section.__module__}.{section.__name__}"] = rows
    return json.loads(json.dumps(table))


def sections_of(section: type) -> set[type]:
    """The dataclass and those of its sections, of every kind."""
    found = (configuration.sections_of(hint) for hint in configuration.hints_of(section).values())
    return {section}.union(*(sections_of(member) for members in found for member in members))


if __name__ == "__main__":
    rows = [
        f" {json.dumps(section)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in fields.items())
        + "\n }"
        for section, fields in decisions().items()
    ]
    (HERE / "identities.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
