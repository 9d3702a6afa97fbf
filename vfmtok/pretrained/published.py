"""The published checkpoints: which file of which repository holds which part, and how that model is configured.

A repository is a row of ``PUBLISHED``. Hashes are not known where this was written. The Hub states the SHA-256 of each
file, and what was downloaded is checked against it; a hash entered here is asked for besides, and pins the file for
good.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vfmtok.config import closest_match
from vfmtok.encoders.vfm import EncoderConfig
from vfmtok.errors import WeightsError
from vfmtok.generators.gpt.config import gpt_config
from vfmtok.tokenizers.vfmtok.config import VFMTokConfig

Section = Literal["tokenizer", "generator"]  # what a model is, and where recipes and saved models keep its settings


@dataclass(frozen=True)
class PublishedFile:
    """A part of a repository.

    Attributes:
        file: its path there.
        section: what it is.
        config: the model's configuration, which published files do not bring.
        sha256: what the file must have, where that is known.
    """

    file: str
    section: Section
    config: Any
    sha256: str | None = None


@dataclass(frozen=True)
class Repository:
    """
    Attributes:
        parts: name -> file. A generator of a named size is called by it.
        encoder: (repository, file) of the frozen encoder on the Hub, where the tokenizer has one.
    """

    parts: Mapping[str, PublishedFile] = field(default_factory=dict)
    encoder: tuple[str, str] | None = None


VFMTOK = "yexiguafu/VFMTok"
# It comes without its frozen encoder, DINOv2-L with registers.
VFMTOK_CONFIG = VFMTokConfig(encoder=EncoderConfig(weights="auto"))
_EPOCHS = {"GPT-B": 300, "GPT-L": 300, "GPT-XL": 200, "GPT-XXL": 200, "GPT-2B": 200, "GPT-3B": 200}

PUBLISHED: dict[str, Repository] = {
    VFMTOK: Repository(
        {
            "tokenizer": PublishedFile("DINOv2/tokenizer/vfmtok-tokenizer.pt", "tokenizer", VFMTOK_CONFIG),
            **{
                size: PublishedFile(f"DINOv2/{size}/{size}-{epochs}e.pt", "generator", gpt_config(size))
                for size, epochs in _EPOCHS.items()
            },
        },
        encoder=("timm/vit_large_patch14_reg4_dinov2.lvd142m", "model.safetensors"),
    ),
}


def published_file(repository: str, part: str | None, section: Section | None = None) -> PublishedFile:
    """A part of a published repository by its name, or the only one of a section where ``part`` is None or names it.

    Raises WeightsError naming the parts that there are.
    """
    parts = PUBLISHED[repository].parts
    if part in parts:
        return parts[part]
    choices = [name for name, published in parts.items() if published.section == (part or section)]
    if len(choices) == 1:
        return parts[choices[0]]
    if choices:
        several = f"holds {part or section}s of several sizes: name one, such as {choices[0]} (--gpt-model)"
        raise WeightsError(f"{repository} {several}")
    part = part or section
    raise WeightsError(f"{repository} has no part '{part}'{closest_match(part, parts)}: it has {', '.join(parts)}")
