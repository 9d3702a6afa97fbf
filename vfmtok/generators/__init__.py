"""Generators: labels to the code of an image. A family is a folder here and a row of ``GENERATORS``.

contract        what every generator offers; the rest of the package asks for nothing else
drawing         codes and images of labels, by all processes of a run
autoregressive  sampling ids one after the other; token_sampling: from logits to a token
kv_cache        keys and values of the tokens so far; causal_attention: the kernels over them and over sequences
counter_random  random numbers by (seed, sample, ...)
gpt/            next-token prediction (LlamaGen's GPT)
rar/            permuted orders, annealed to the raster order
"""

from collections.abc import Iterable
from typing import Any, Union

from vfmtok.config import override_tree
from vfmtok.errors import ConfigError
from vfmtok.families import Family
from vfmtok.generators.contract import Generator
from vfmtok.generators.gpt.config import GPTConfig
from vfmtok.generators.rar.config import RARConfig

GENERATORS = {
    "gpt": Family(GPTConfig, "vfmtok.generators.gpt.model:GPT"),
    "rar": Family(RARConfig, "vfmtok.generators.rar.model:RAR"),
}
AnyGeneratorConfig = Union[tuple(family.config for family in GENERATORS.values())]  # noqa: UP007 - the first is the default


def build_generator(config: Any) -> Generator:
    """The generator of a configuration, of whatever kind. Raises ConfigError."""
    return GENERATORS[config.kind].model(config)


def generator_tree(tree: dict[str, Any], overrides: Iterable[str] = (), source: str = "configuration") -> dict:
    """The generator's keys and values in those of a file, changed by ``overrides``. Raises ConfigError.

    A recipe keeps them in a section ``generator:`` (``gpt:`` in version 0.1); a file may hold nothing else.
    """
    if "tokenizer" in tree:
        raise ConfigError(f"{source} is the recipe of a tokenizer: it has no section generator")
    section = tree.get("generator", tree.get("gpt", tree))
    if not isinstance(section, dict):
        raise ConfigError(f"{source}: generator must be a section of keys and values, got {section!r}")
    return override_tree(section, [text.removeprefix("generator.").removeprefix("gpt.") for text in overrides])
