"""Generators: labels to the code of an image. A family is a folder here and a row of ``GENERATORS``.

contract        what every generator offers; the rest of the package asks for nothing else
drawing         codes and images of labels, by all processes of a run
autoregressive  sampling ids one after the other; token_sampling: from logits to a token
inpainting      a part of an image kept, the rest drawn
kv_cache        keys and values of the tokens so far; causal_attention: the kernels over them and over sequences
cuda_graphs     on GPUs: the kernels of a step recorded once and replayed
linear_kernels  the fastest product of linear layers with a few rows, on CPUs
counter_random  random numbers by (seed, sample, ...)
orders          random orders of tokens, annealed to the raster order
gpt/            next-token prediction (LlamaGen's GPT)
rar/            permuted orders, annealed to the raster order
diffusion/      flow matching on latents (LightningDiT, REG, DiT-DH)
"""

from collections.abc import Iterable
from typing import Annotated, Any

from vfmtok.config import Kinds, closest_match
from vfmtok.errors import ConfigError
from vfmtok.families import Family, config_of_size
from vfmtok.generators.contract import Generator
from vfmtok.generators.diffusion.config import DIT_SIZES, DiTConfig
from vfmtok.generators.gpt.config import GPT_SIZES, GPTConfig
from vfmtok.generators.rar.config import RAR_SIZES, RARConfig
from vfmtok.trees import override_section

GENERATORS = {
    "gpt": Family(GPTConfig, "vfmtok.generators.gpt.model:GPT", GPT_SIZES),
    "rar": Family(RARConfig, "vfmtok.generators.rar.model:RAR", RAR_SIZES),
    "diffusion": Family(DiTConfig, "vfmtok.generators.diffusion.model:DiT", DIT_SIZES),
}
AnyGeneratorConfig = Annotated[Any, Kinds(lambda: [family.config for family in GENERATORS.values()])]


def build_generator(config: Any) -> Generator:
    """The generator of a configuration, of whatever kind. Raises ConfigError."""
    return GENERATORS[config.kind].model(config)


def family_of_size(size: str) -> Family:
    """The family in which a size has this name. Raises ConfigError naming the sizes that there are."""
    sizes = [name for family in GENERATORS.values() for name in family.sizes]
    if size not in sizes:
        hint = closest_match(size, sizes)
        raise ConfigError(f"no generator is called '{size}'{hint}; there are {', '.join(sizes)}")
    return next(family for family in GENERATORS.values() if size in family.sizes)


def generator_config(size: str, /, **fields: Any) -> Any:
    """The configuration of a named size of any family, with other fields of it. Raises ConfigError."""
    family = family_of_size(size)
    return config_of_size(family.config, family.sizes, size, fields)


def generator_tree(tree: dict[str, Any], overrides: Iterable[str] = (), source: str = "configuration") -> dict:
    """The generator's keys and values in those of a file, changed by ``overrides``. Raises ConfigError.

    A recipe keeps them in a section ``generator:`` (``gpt:`` in version 0.1); a file may hold nothing else.
    """
    if "tokenizer" in tree:
        raise ConfigError(f"{source} is the recipe of a tokenizer: it has no section generator")
    section = tree.get("generator", tree.get("gpt", tree))
    if not isinstance(section, dict):
        raise ConfigError(f"{source}: generator must be a section of keys and values, got {section!r}")
    changes = [f"generator.{text[4:]}" if text.startswith("gpt.") else text for text in overrides]
    return override_section(section, "generator", changes, next(iter(GENERATORS)))
